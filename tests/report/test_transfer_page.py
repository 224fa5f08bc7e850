"""The page of a transfer run holds what its folder holds, and is whole without any of it."""

import json
import re
import shlex
from html import unescape
from pathlib import Path

import pytest
import yaml
from browser import Browser, find_browser

from moco.report.rerun import rerun_transfer
from moco.report.transfer_page import write_transfer_page
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.transfer.detection.evaluation.evaluate import evaluate_detector
from moco.transfer.detection.results import examples_of, write_results
from tests.transfer.detection.oracle import Numbered, Oracle

HOSTILE = '<script>alert("x")</script>'
CONFIG = {
    "task": "detect",
    "recipe": "voc-r50-c4",
    "data": {"source": f"voc:{HOSTILE}", "labels": "10%"},
    "encoder": {"encoder": "resnet50", "small_stem": False, "init": "runs/mine"},
    "model": {"structure": "c4", "masks": True},
    "training": {"iterations": 24000, "batch_size": 16, "lr": 0.02, "milestones": [18000, 22000], "seed": 3},
    "evaluation": {"metric": "coco", "test_images": None},
    "compute": {"device": "auto", "workers": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of a run with two evaluations and all that it leaves."""
    folder = tmp_path_factory.mktemp("runs") / "voc"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(20, 2001, 20):
            losses = {"loss_rpn_cls": 0.4, "loss_rpn_loc": 0.1, "loss_cls": 2.0, "loss_box_reg": 0.3, "loss_mask": 0.69}
            losses = {name: value * (0.3 + 100 / (step + 100)) for name, value in losses.items()}
            file.write(json.dumps({"step": step, "loss": sum(losses.values()), **losses, "lr": 0.02}) + "\n")
            if step % 1000 == 0:
                file.write(json.dumps({"step": step, "AP": step / 50, "AP50": step / 30, "APs": 1.0}) + "\n")
    device = choose_device("cpu", "fp32", channels_last=False)
    found = evaluate_detector(Oracle(), Numbered(range(30), broken=[4]), device, metric="coco", side=30)
    write_results(folder, found, examples_of(Oracle(), Numbered(range(30)), device, side=30), {"recipe": "voc-r50-c4"})
    write_transfer_page(folder, folder / "report.html")
    return folder


def data_of(page: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0])


def cells(page: str, heading: str) -> list[str]:
    """The cells of the table's line that begins so."""
    (row,) = re.findall(rf'<tr><th scope="row">{re.escape(heading)}</th>(.*?)</tr>', page)
    return [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)]


def test_it_holds_results_classes_published_figures_pictures_and_curves(folder):
    page = (folder / "report.html").read_text()
    assert re.findall(r'<section id="(\w+)"', page) == ["runs", "results", "classes", "images", "curves"]
    numbers = json.loads((folder / "results.json").read_text())["numbers"]
    assert cells(page, "this run")[:4] == [f"{numbers[n]:.1f}" for n in ("AP", "AP50", "AP75", "mask AP")]
    assert cells(page, "MoCo IG-1B")[:4] == ["57.2", "82.2", "63.7", "-"]
    assert "on 29 test images, without 1 that cannot be read" in page
    assert cells(page, "unicorn")[:3] == ["0", "-", "-"]
    assert cells(page, "mask APs") == [f"{numbers['mask APs']:.1f}"]
    assert page.count("data:image/png;base64,") == 2
    curves = data_of(page)["runs"][0]["curves"]
    assert list(curves) == [
        "AP", "AP50", "loss", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "lr",
    ]  # fmt: skip
    assert curves["AP"] == {"step": [1000, 2000], "epoch": [None, None], "value": [20, 40]}
    assert HOSTILE not in page
    assert "InfoNCE" not in page


def test_the_command_spells_what_differs_from_the_recipe():
    recipe = {**CONFIG, "data": {"source": "voc:VOC", "labels": "all"}, "model": {"structure": "c4", "masks": False}}
    words = shlex.split(rerun_transfer(CONFIG, recipe, "again"))
    start = ["moco", "detect", "runs/mine", "--recipe", "voc-r50-c4"]
    assert words == [*start, "--data", f"voc:{HOSTILE}", "--labels", "10%", "--masks", "--out", "again"]
    every = rerun_transfer(CONFIG, {}, "again")
    assert "--milestones 18000 22000 --seed 3" in every
    assert "--no-small-stem" in every
    assert not {"--init", "--workers", "--test-images"} & set(shlex.split(every))


def test_a_run_of_segmentation_and_one_that_has_only_begun(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "task": "segment", "recipe": "voc-fcn"}))
    write_transfer_page(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r'<section id="(\w+)"', page) == ["runs", "results", "curves"]
    assert "Nothing is evaluated yet: moco segment RUN --eval-only does." in page
    results = {
        "metric": "mIoU",
        "images": 5,
        "unreadable": 0,
        "numbers": {"mIoU": 61.25, "pixel accuracy": None},
        "per_class": [{"class": "road", "pixels": 12345, "IoU": 61.3}, {"class": "sky", "pixels": 0, "IoU": None}],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "cross_entropy": 0.5, "mIoU": 61.25}\n')
    (tmp_path / "predictions.png").write_bytes(b"png")
    write_transfer_page(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert cells(page, "this run") == ["61.2", "-"]
    assert cells(page, "road") == ["12,345", "61.3"]
    assert cells(page, "sky") == ["0", "-"]
    assert page.count("data:image/png;base64,") == 1
    assert list(data_of(page)["runs"][0]["curves"]) == ["mIoU", "cross_entropy"]


@pytest.mark.parametrize("text", ["{", "[]", '{"numbers": 3}'])
def test_damaged_results_are_left_out(tmp_path, text):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "results.json").write_text(text)
    write_transfer_page(tmp_path, tmp_path / "report.html")
    assert "Nothing is evaluated yet" in (tmp_path / "report.html").read_text()


def test_without_a_configuration_there_is_no_page(tmp_path):
    for text in (None, "[", "- 1"):
        if text:
            (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: (cannot be read|holds no configuration)"):
            write_transfer_page(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here (Debian: chromium)")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_it_is_drawn_in_a_browser_without_an_error(folder, tmp_path, width, dark):
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(folder / "report.html", width, 900, dark)
        assert browser.errors == []
        assert browser.requests == [(folder / "report.html").as_uri()]
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate("document.querySelectorAll('.panel').length") == 9
        assert browser.evaluate("[...document.images].every(i => i.naturalWidth > 100)")
        paths = "Math.min(...[...document.querySelectorAll('.panel')].map(p => p.querySelectorAll('path').length))"
        assert browser.evaluate(paths) > 0
        browser.screenshot(Path(f"/tmp/deteval-{width}.png"), whole=True)
    finally:
        browser.close()
