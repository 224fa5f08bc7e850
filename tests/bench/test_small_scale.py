"""The small-scale results' command runs whole at tiny sizes, in pieces."""

import json
from pathlib import Path

import pytest

from bench.small_scale import main, published, speed
from moco.runs.config import check


@pytest.fixture(scope="module")
def npz(random_npz) -> Path:
    return random_npz(80, size=32, classes=2)


@pytest.mark.slow
def test_it_stops_when_the_time_is_up_and_goes_on(npz, tmp_path, capsys):
    command = ["--quick", "--data", f"npz:{npz}", "--out", str(tmp_path)]
    main([*command, "--minutes", "0"])
    assert "the same command continues" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/*/result.json"))
    main(command)
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/result.json")]
    assert len(results) == 4  # two settings of each table
    assert all(result["seconds"] > 0 for result in results)
    page = (tmp_path / "small-scale-gpu.md").read_text()
    assert "83.8" in page
    assert "minutes" in page
    assert (tmp_path / "cifar10-speed-gpu.md").exists()


def test_the_settings_can_start():
    for cell in [*published("gpu", {}), *speed("gpu", {})]:
        check(cell.config)
    assert [cell.published.value for cell in published("gpu", {})] == [83.8, 84.7, 89.9]


def test_bad_data_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="no such path"):
        main(["--quick", "--data", "npz:/nowhere", "--out", str(tmp_path)])
