"""Several starts, numbers of labels and seeds, without a network."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from moco.runtime.errors import UserError
from moco.transfer.compare import Comparison, Entry, compare, numbers_of
from moco.transfer.config import TransferConfig
from moco.transfer.run import SegmentationRun
from tests.transfer.toy import config


class Trainings:
    """Writes numbers that follow from the setting in the place of a training; the `stop`th fails."""

    def __init__(self, stop: int = 0) -> None:
        self.done: list[tuple[str, str, int]] = []
        self.stop = stop

    def __call__(self, own: TransferConfig, folder: Path) -> None:
        if len(self.done) + 1 == self.stop:
            raise KeyboardInterrupt
        self.done.append((own.encoder.init, own.data.labels, own.training.seed))
        run = SegmentationRun.create(folder, own)
        run.write_json("results", {"numbers": value(own.encoder.encoder, own.data.labels, own.training.seed)})


def value(encoder: str, labels: str, seed: int) -> dict[str, float]:
    return {"mIoU": len(encoder) + (50 if labels == "all" else 10) + seed**2, "pixel accuracy": 90.0}


@pytest.fixture
def start(tmp_path) -> str:
    """A run of an encoder of another name than the recipe's."""
    own = config()
    SegmentationRun.create(tmp_path / "start", replace(own, encoder=replace(own.encoder, encoder="resnet18w0.25")))
    return str(tmp_path / "start")


def test_the_published_figures_of_the_recipe_stand_below(tmp_path):
    numbers = [{"AP": 50.0, "AP50": 80.0, "AP60": 70.0}]
    header, own, *published = Comparison([Entry("RUN", "all", numbers)], "voc-r50-c4").table()
    assert header == ["start", "labels", "runs", "AP", "AP50", "AP60", "published in"]
    assert own == ["RUN", "all", "1", "50.0", "80.0", "70.0", ""]
    moco = next(row for row in published if row[0] == "MoCo IN-1M")
    assert moco[:6] == ["MoCo IN-1M", "", "", "55.9", "81.5", "-"]
    assert len(Comparison([Entry("RUN", "all", numbers)], "own-c4").table()) == 2


def test_each_cell_has_its_mean_and_standard_deviation(tmp_path, start):
    train = Trainings()
    done = compare(config(), ["random", start], ["10%", "all"], 3, tmp_path / "out", train)
    cells = [(init, labels) for labels in ("10%", "all") for init in ("random", start)]
    assert train.done == [(*cell, seed) for seed in range(3) for cell in cells]  # whole trials, one after the other
    assert [(entry.init, entry.labels) for entry in done.entries] == cells
    entry = done.entries[0]
    expected = [value("resnet18w0.25", "10%", seed)["mIoU"] for seed in range(3)]  # random has the start's encoder
    assert [each["mIoU"] for each in entry.numbers] == expected
    assert entry.mean("mIoU") == pytest.approx(statistics.fmean(expected))
    assert entry.std("mIoU") == pytest.approx(statistics.stdev(expected))
    assert entry.text("mIoU") == f"{statistics.fmean(expected):.1f} ± {statistics.stdev(expected):.1f}"
    done.write(tmp_path / "out")
    assert done.markdown().splitlines()[2].startswith("| random | 10% | 3 |")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())[0]["numbers"] == entry.numbers
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.size == (660, 440)


def test_a_single_run_has_no_standard_deviation(tmp_path):
    (entry,) = compare(config(), ["random"], ["all"], 1, tmp_path, Trainings()).entries
    assert math.isnan(entry.std("mIoU"))
    assert "±" not in entry.text("mIoU")


def test_an_interrupted_comparison_trains_only_what_is_missing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(config(), ["random"], ["10%", "all"], 2, tmp_path, Trainings(stop=3))
    train = Trainings()
    done = compare(config(), ["random"], ["10%", "all"], 2, tmp_path, train)
    assert train.done == [("random", "10%", 1), ("random", "all", 1)]
    whole = compare(config(), ["random"], ["10%", "all"], 2, tmp_path / "other", Trainings())
    assert done == whole


def test_results_of_another_setting_are_not_taken_for_these(tmp_path):
    compare(config(), ["random"], ["all"], 1, tmp_path, Trainings())
    with pytest.raises(UserError, match=r"holds a run with other options: lr 0.1 -> 0.2"):
        compare(config(lr=0.2), ["random"], ["all"], 1, tmp_path, Trainings())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"numbers": [1]}', '{"numbers": {"mIoU": "high"}}'])
def test_a_damaged_file_holds_no_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert numbers_of(tmp_path) is None
    assert numbers_of(tmp_path / "nowhere") is None
