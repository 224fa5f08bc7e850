"""The GPU's bench runs whole at tiny sizes on whatever is here; no time is asserted."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench.count import Ceilings, Count, count_step
from bench.gpu import main

ROOT = Path(__file__).parents[2]
LIGHTLY = find_spec("lightly") is not None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "bench.gpu", "--quick", "--json", str(folder / "gpu.json")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return (folder / "gpu.md").read_text(), json.loads((folder / "gpu.json").read_text())


@pytest.mark.slow
def test_every_work_is_measured(written):
    _, result = written
    assert len(result["rows"]) == 5
    for row in result["rows"]:
        assert set(row["failed"]) == ({"lightly"} if "data in memory" in row["work"] and not LIGHTLY else set())
        assert all(rate > 0 for rate in row["images_per_second"].values())
    assert {"device", "torch", "date", "commit", "command", "ceilings"} <= set(result)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_side_and_the_floor(written):
    page, result = written
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    sides = sum(len(row["images_per_second"]) + len(row["failed"]) for row in result["rows"])
    assert len(lines) == sides + 1
    assert "the floor, as counted" in page
    assert result["command"] in page


def test_a_work_that_is_not_reached_in_time_is_named(tmp_path):
    main(["--quick", "--minutes", "0", "--json", str(tmp_path / "gpu.json")])
    assert (tmp_path / "gpu.md").read_text().count("not reached in time") == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 2
    assert "no GPU" in capsys.readouterr().err


def test_a_convolution_s_operations_are_counted():
    """ResNet-18 at 224 has 1.81 G multiplications (torchvision's page); a step has four forward passes' worth."""
    count = count_step("resnet18", 224, 2, 64, None, small_stem=False)
    products = count.flops["products"] / 2 / 2  # multiplications an image
    # Two forward passes, the backward one of twice the work, less the first layer's gradient of the images.
    assert products == pytest.approx(4 * 1.81e9, rel=0.03)


def test_the_floor_is_the_greater_of_both_ceilings():
    count = Count()
    count.add("products", flops=100, moved=1)
    count.add("BN", flops=0, moved=30)
    assert count.floor(Ceilings(flops=10, bandwidth=10)) == pytest.approx(10 + 3)
