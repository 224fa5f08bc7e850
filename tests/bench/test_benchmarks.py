"""The benchmarks run at tiny sizes, and write what they say; no time is asserted."""

import json
from importlib.util import find_spec

import pytest
import torch

from bench.__main__ import main

pytestmark = pytest.mark.slow
NAMES = ["jpeg-core", "jpeg", "jpeg", "small", "step-tiny", "step-224", "read-cold", "read-warm"]
MAY_BE_UNABLE = {"read-cold"}  # not every file system lets its page cache be emptied
LIGHTLY = find_spec("lightly") is not None


def bench(*arguments: str) -> None:
    """In this process, whose number of threads stays: the results of later tests depend on it."""
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--repeats", "1", *arguments])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    page.write_text("before\n<!-- table -->\nstale\n<!-- end -->\nafter\n")
    bench("--page", str(page), "--json", str(folder / "data.json"))
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


def test_a_page_without_markers_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.__main__.prepare", None)
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    with pytest.raises(SystemExit, match="<!-- table -->"):
        bench("--only", "small", "--page", str(page))
    assert page.read_text() == "no markers\n"


def test_an_unknown_work_names_those_there_are(capsys):
    with pytest.raises(SystemExit) as left:
        bench("--only", "jpg")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "jpeg-core" in error
    assert "growth" in error


def test_a_profile_names_the_operations_of_our_side(capsys):
    bench("--profile", "small")
    out = capsys.readouterr().out
    assert "Self CPU" in out
    assert "aten::" in out
