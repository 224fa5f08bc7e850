"""The field's words are the only ones: none of the private ones is in help, messages, docs, names or docstrings."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    r"look-?ups?|look_ups?": "contrastive accuracy",
    r"guess(es|ing)?": "chance",
    r"judge[sd]?|judging": "evaluate",
    r"look(s|ed|ing)?( at)?": "examine, monitor, evaluate",
    r"told|tells?|telling": "log, print, or the plain fact",
    r"says?|said|saying": "log, print, or the plain fact",
    r"lanes?": "shard streams",
    r"resident": "cached in memory",
    r"spreads?": "feature std, standard deviation over seeds",
    r"parts": "gradient-accumulation steps",
    r"lies? on the device|long strokes|(who|that) is at it": "plain words",
    r"asked|asks|nobody|opening": "plain words; OpenOptions, Indices",
    r"pip install moco": "pip install momentum-contrast: the name moco on the package index is somebody else's",
}
PATTERN = re.compile("|".join(rf"\b({words})\b" for words in FORBIDDEN), re.IGNORECASE)
PIP = re.compile(r"pip3? install (-\S+ )*[\"']?moco\b", re.IGNORECASE)
TEXTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("bench/*.md"),
        *ROOT.glob("moco/weights/*.md"),
        *ROOT.glob("moco/report/templates/*.html"),
    ]
)
MODULES = sorted([*ROOT.glob("moco/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("bench/*.py")])
CODE = re.compile(r"`[^`]*`")
"""A name in a text, such as those that the changelog renames."""
OURS = [path for path in MODULES if "transfer" not in path.parts]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
OPTIONS = {"config.py", "options.py"}
"""Where the docstrings of fields are the help of options."""
ALLOWED = {
    "moco/runs/options.py": {"lanes", "spread"},  # the names of 0.1.0
    "moco/runs/folder.py": {"spread"},
    "moco/reproduce/grid.py": {"lookup"},
    "moco/data/sources/remote.py": {"tell"},  # a method of Python's files
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def strings(path: Path) -> list[tuple[int, str]]:
    """The strings of a module that a user may see: all but docstrings, and of the options' modules these too."""
    tree = tree_of(path)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and path.name not in OPTIONS
    }
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [(node.lineno, node.value) for node in found if id(node) not in docstrings]


def private(text: str, allowed: frozenset[str] | set[str] = frozenset()) -> list[str]:
    return [found[0] for found in PATTERN.finditer(text) if found[0].lower() not in allowed]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_word_in_what_a_module_prints(path):
    name = str(path.relative_to(ROOT))
    found = {
        f"{name}:{line}": words for line, text in strings(path) if (words := private(text, ALLOWED.get(name, set())))
    }
    assert found == {}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_word_in_docs(path):
    lines = CODE.sub("", path.read_text()).splitlines()
    assert {number: words for number, line in enumerate(lines, 1) if (words := private(line))} == {}


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_word_in_docstrings_and_names(path):
    """Names are read word by word: `looked_at` is looked and at."""
    tree = tree_of(path)
    nodes = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    texts = [text for node in nodes if (text := ast.get_docstring(node))]
    names = [node.name for node in nodes if not isinstance(node, ast.Module)]
    names += [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    names += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    words = [*texts, *(re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", name) for name in names)]
    found = {text: found for text in words if (found := private(text, ALLOWED.get(str(path.relative_to(ROOT)), set())))}
    assert found == {}


def test_no_text_installs_a_stranger_s_package():
    paths = [
        path
        for path in (*MODULES, *TEXTS, *ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/**/*.py"))
        if path != Path(__file__)
    ]
    assert [str(path) for path in paths if PIP.search(path.read_text())] == []


@pytest.mark.parametrize("text", ["pip install moco", "pip install 'moco[hf]'", "pip install -U moco"])
def test_such_a_text_is_found(text):
    assert PIP.search(text)
    assert not PIP.search(text.replace("moco", "momentum-contrast"))
