import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from moco.runs.published import TRANSFER
from moco.runtime.device import choose_device
from moco.transfer.detection.evaluation.evaluate import evaluate_detector
from moco.transfer.detection.evaluation.evaluation import read_evaluation
from moco.transfer.detection.results import class_table, examples_of, results_table, write_results
from moco.transfer.results import spelled
from tests.transfer.detection.oracle import Numbered, Oracle, found_in

CPU = choose_device("cpu", "fp32", channels_last=False)


def evaluation(metric="coco"):
    return evaluate_detector(Oracle(), Numbered(range(12)), CPU, metric=metric, side=30)


def printed(table) -> str:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    return console.export_text()


def test_examples_are_of_fixed_places_in_the_image_s_own_pixels():
    found = examples_of(Oracle(), Numbered(range(40), broken=[39]), CPU, side=30)
    assert [name for name, *_ in found] == [f"folder/{i}.png" for i in (0, 4, 7, 11, 14, 18, 21, 25, 28, 32, 35)]
    for name, image, target, detections in found:
        number = int(name.removeprefix("folder/").removesuffix(".png"))
        assert (image == number).all()
        assert len(target) == number % 4
        assert torch.equal(detections.boxes, found_in(number).boxes)
    assert [name for name, *_ in examples_of(Oracle(), Numbered([3, 5]), CPU, side=30)] == [
        "folder/3.png",
        "folder/5.png",
    ]


def test_the_folder_gets_json_curves_and_a_sheet(tmp_path):
    found = evaluation()
    (tmp_path / "results.json").write_text("before")
    path = write_results(
        tmp_path,
        found,
        examples_of(Oracle(), Numbered(range(5)), CPU, side=30),
        {"recipe": "own-c4", "start": "random"},
    )
    values = json.loads(path.read_text())
    assert (values["recipe"], values["start"], values["task"]) == ("own-c4", "random", "detection")
    assert read_evaluation(path).to_dict() == found.to_dict()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detections.png", "precision-recall.png", "results.json"]
    with Image.open(tmp_path / "detections.png") as sheet:
        assert np.asarray(sheet).std() > 0
        assert sheet.height > 3 * 320
    assert not (write_results(tmp_path, found, []).parent / "x").exists()


def test_published_figures_stand_below_the_measured_ones():
    found = evaluation("voc07")
    text = printed(results_table(found, "voc-r50-c4", "mine"))
    (mine,) = [line for line in text.splitlines() if "mine" in line]
    assert all(f"{found.numbers[name]:.1f}" in mine for name in ("AP", "AP50", "AP75"))
    (theirs,) = [line for line in text.splitlines() if "MoCo IG-1B" in line]
    assert all(value in theirs for value in ("82.2", "57.2", "63.7", "He et al. 2020"))
    assert "published" not in printed(results_table(found, "own-c4"))
    coco = printed(results_table(evaluation(), "coco-r50-fpn-2x"))
    (theirs,) = [line for line in coco.splitlines() if "MoCo IG-1B" in line]
    assert all(value in theirs for value in ("41.1", "37.4", " - "))


def test_classes_without_objects_have_no_number():
    lines = printed(class_table(evaluation())).splitlines()
    (unicorn,) = [line for line in lines if "unicorn" in line]
    assert unicorn.split("│")[2].strip() == "0"
    assert unicorn.split("│")[3].strip() == "-"
    assert any("mask AP50" in line for line in lines)
    assert (spelled(None), spelled(float("nan")), spelled(41.04)) == ("-", "-", "41.0")


@pytest.mark.parametrize("rows", TRANSFER.values(), ids=TRANSFER)
def test_a_published_line_is_plausible(rows):
    for row in rows:
        assert row.source
        assert all(0 < value < 100 for value in row.numbers.values())
        assert row.numbers.get("AP50", 100) > row.numbers["AP"]
    assert len({(row.start, row.source) for row in rows}) == len(rows)
