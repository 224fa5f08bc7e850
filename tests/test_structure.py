"""The house holds: arrows between rooms point down, there is no circle, and commands import only what they need."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import moco
from moco.runs.config import Config
from moco.runs.folder import Run

PACKAGE = Path(moco.__file__).parent
TIERS = [
    {"contrast"},
    {"views", "encoders", "runtime"},
    {"runs", "data"},
    {"training", "evaluation", "transfer", "diagnosis"},
    {"reproduce", "report"},
    {"cli"},
]
"""From low to high; a room imports its own tier and those below it."""
TIER = {room: number for number, rooms in enumerate(TIERS) for room in rooms}


def module_of(path: Path) -> str:
    words = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


FILES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else str(node.module) for name in names)


@cache
def graph() -> dict[str, set[str]]:
    """The modules of the package that each imports."""
    return {name: {other for other in imported(path) if other in FILES} for name, path in FILES.items()}


def room(module: str) -> str:
    """The room of a module, "" of moco/__init__.py and moco/__main__.py."""
    words = module.split(".")
    return words[1] if len(words) > 1 and words[1] != "__main__" else ""


def require_no_circle(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_every_room_has_its_tier():
    assert {room(name) for name in FILES} - {""} <= set(TIER)


def test_no_module_imports_a_room_above_its_own():
    upwards = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if room(name) and room(other) and TIER[room(other)] > TIER[room(name)]
    ]
    assert upwards == []


def test_no_circle_between_modules():
    require_no_circle(graph())


def test_no_circle_between_rooms():
    rooms: dict[str, set[str]] = {name: set() for name in TIER}
    for name, others in graph().items():
        if room(name):
            rooms[room(name)] |= {room(other) for other in others} - {room(name), ""}
    require_no_circle(rooms)


def test_contrast_imports_torch_alone():
    for name, path in FILES.items():
        if room(name) == "contrast":
            # Kernels are imported where what compiles them is there: Triton comes with PyTorch for CUDA.
            compilers = {"gpu": {"triton"}, "cpu": {"numba", "llvmlite", "numpy"}, "compiled": {"numba", "numpy"}}
            allowed = {*sys.stdlib_module_names, "torch", *compilers.get(re.split(r"[._]", name)[-1], ())}
            others = {other for other in imported(path) if not other.startswith("moco.contrast")}
            assert {other.split(".")[0] for other in others} <= allowed, name


def test_a_gpu_s_kernels_are_imported_where_they_are_used_alone():
    importers = {name: others for name, others in graph().items() if any(other.endswith("_gpu") for other in others)}
    assert not importers


def test_an_init_hands_on_names_and_holds_no_code():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent == PACKAGE:  # its names are imported when they are first used
            continue
        for node in ast.parse(path.read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            assert docstring or names or isinstance(node, ast.Import | ast.ImportFrom), f"{path}: {ast.unparse(node)}"


def test_every_public_name_is_there():
    for name in moco.__all__:
        assert getattr(moco, name).__name__ == name


def test_every_name_that_a_room_hands_on_is_there():
    for name, path in FILES.items():
        if path.name == "__init__.py":
            module = importlib.import_module(name)
            assert [public for public in getattr(module, "__all__", []) if not hasattr(module, public)] == [], name


HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "PIL", "jinja2", "tensorboard", "moco.contrast", "moco.data")
COMMANDS = [
    ["--help"],
    ["--version"],
    ["recipes"],
    ["recipes", "cifar10-r18"],
    ["doctor", "RUN"],
    ["doctor", "nowhere"],
    ["pretrain", "--help"],
    ["pretrain", "shapes-cpu", "--help"],
    ["pretrain", "shapes-cpu", "--lr", "nope"],
    ["pretrain", "shapes-cpu", "--batch-size", "0"],
    ["knn", "--help"],
    ["export", "--help"],
    ["pretran"],
]
SCRIPT = """
import json, sys
from moco.cli.main import main
loaded = {}
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit:
        pass
    loaded[" ".join(words)] = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps(loaded))
"""


def test_help_recipes_the_doctor_and_mistakes_import_nothing_heavy(tmp_path):
    """One process runs them all, the first to import something heavy is named."""
    run = Run.create(tmp_path / "run", Config())
    run.metrics.write_text('{"step": 10, "epoch": 0.1, "loss": 9.0, "accuracy": 0.1, "lr": 0.03}\n')
    commands = [[str(run.path) if word == "RUN" else word for word in words] for words in COMMANDS]
    words = [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert len(loaded) == len(COMMANDS)
    assert {command: names for command, names in loaded.items() if names} == {}
