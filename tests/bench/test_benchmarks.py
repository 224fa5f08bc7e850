"""The benchmarks run at tiny sizes, and write what they say; no time is asserted."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NAMES = ["jpeg-core", "jpeg", "jpeg", "small", "step-tiny", "step-224", "read-cold", "read-warm"]
MAY_BE_UNABLE = {"read-cold"}  # not every file system lets its page cache be emptied
LIGHTLY = find_spec("lightly") is not None


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "--quick", "--repeats", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    page.write_text("before\n<!-- table -->\nstale\n<!-- end -->\nafter\n")
    ended = bench("--page", str(page), "--json", str(folder / "data.json"))
    assert ended.returncode == 0, ended.stderr
    return page.read_text(), json.loads((folder / "data.json").read_text())


def test_every_work_is_measured_on_both_sides(written):
    _, result = written
    assert sorted(row["name"] for row in result["rows"]) == sorted(NAMES)
    for row in result["rows"] + result["growth"]:
        if row["name"] in MAY_BE_UNABLE and "not_measured" in row:
            continue
        if "lightly" in row["against"] and not LIGHTLY:
            assert row["not_measured"] == "lightly is not installed"
            continue
        assert "not_measured" not in row, row
        assert row["ratio"] == pytest.approx(row["images_per_second"]["ours"] / row["images_per_second"]["peer"])
        assert all(len(seconds) == 1 for seconds in row["seconds"].values())
        if "step" in row["name"]:
            assert [*row["equal"]][:1] == ["float32"]
            assert all(compared["ratio"] > 0 for compared in row["equal"].values())


def test_the_figures_come_with_their_context(written):
    _, result = written
    assert result["command"].startswith("python -m bench --quick")
    assert {"cpu", "cores", "avx512_bf16", "amx_bf16", "torch", "torchvision", "lightly", "date"} <= set(result)


def test_the_page_is_written_between_its_markers(written):
    page, result = written
    head, rest = page.split("<!-- table -->\n")
    block, tail = rest.split("<!-- end -->")
    assert (head, tail) == ("before\n", "\nafter\n")
    assert "stale" not in block
    assert result["command"] in block
    tables = [part.splitlines() for part in block.split("\n\n") if part.startswith("|")]
    assert [len(lines) - 2 for lines in tables[:2]] == [len(NAMES), len(result["growth"])]
    for lines in tables:
        assert len({line.count(" | ") for line in lines}) == 1


def test_a_page_without_markers_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    ended = bench("--only", "small", "--page", str(page))
    assert ended.returncode == 1
    assert "<!-- table -->" in ended.stderr
    assert page.read_text() == "no markers\n"


def test_an_unknown_work_names_those_there_are():
    ended = bench("--only", "jpg")
    assert ended.returncode == 2
    assert "jpeg-core" in ended.stderr
    assert "growth" in ended.stderr


def test_a_profile_names_the_operations_of_our_side():
    ended = bench("--profile", "small")
    assert ended.returncode == 0, ended.stderr
    assert "Self CPU" in ended.stdout
    assert "aten::" in ended.stdout
