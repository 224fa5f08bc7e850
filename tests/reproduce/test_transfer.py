"""The transfer tables: their settings, and their page from given results."""

import json
import math

import pytest

from moco.cli.main import main
from moco.data import open_source
from moco.reproduce.transfer import PAPER, pretraining, reproduce_transfer, setting_of, settings, supervised
from moco.reproduce.transfer_page import write_transfer
from moco.runtime.errors import UserError
from moco.transfer.compare import Comparison, Entry
from moco.transfer.config import check


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_every_setting_is_one_that_can_run(scale):
    found = settings(scale)
    assert [setting.name for setting in found] == (
        list(PAPER) if scale == "paper" else ["C4", "dilated C5", "FPN", "FCN"]
    )
    for setting in found:
        check(setting.config)
        training = setting.config.training
        assert training.schedule == "cosine" or max(training.milestones) < training.iterations


def test_all_structures_of_a_scale_share_length_and_encoder():
    configs = [setting.config for setting in settings("cpu")]
    assert len({(c.training.iterations, c.training.batch_size, c.encoder.encoder) for c in configs}) == 1
    assert {c.encoder.encoder for c in configs} == {pretraining("cpu").encoder.encoder}


def test_the_supervised_start_has_the_encoder_images_steps_and_batch_of_the_unsupervised_one():
    own, labelled = pretraining("cpu"), supervised("cpu")
    check(labelled)
    assert (own.encoder, own.data.source) == (labelled.encoder, labelled.data.source)
    assert own.views.image_size == labelled.views.image_size
    assert own.training.batch_size == labelled.training.batch_size
    images = len(open_source("shapes", size=16).train)
    assert labelled.training.iterations == own.training.epochs * (images // own.training.batch_size)


def test_options_of_all_runs_and_the_numbers_of_labels_can_be_changed():
    (setting,) = settings("cpu", only=["FPN"], changes=["iterations=10", "labels=5,7", "test_images=3"], data="voc:x")
    assert (setting.labels, setting.config.training.iterations, setting.config.data.source) == (("5", "7"), 10, "voc:x")
    assert setting.config.evaluation.test_images == 3
    for wrong in ("iteration=10", "lr=high"):
        with pytest.raises(UserError, match=wrong.split("=")[0]):
            settings("cpu", changes=[wrong])
    with pytest.raises(UserError, match="did you mean FPN"):
        settings("cpu", only=["FPNN"])


def test_the_page_names_the_images_and_the_encoder_that_were_used():
    encoder = pretraining("cpu").encoder.encoder
    assert setting_of(settings("cpu"), "cpu") == f"Drawn images, {encoder}, 1000 steps."
    other = settings("cpu", data="voc:bccd", changes=["iterations=10"])
    assert setting_of(other, "cpu") == f"voc:bccd, {encoder}, 10 steps."
    assert setting_of(other, "") == "voc:bccd, 10 steps."


def test_the_paper_s_scale_needs_its_starts(tmp_path):
    with pytest.raises(UserError, match="--starts"):
        reproduce_transfer(settings("paper"), "paper", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "imagenet"], "transfer has cpu, gpu and paper"),
        (["--vary", "lr=1,2"], "--vary"),
        (["--dry-run"], "--dry-run"),
    ],
)
def test_what_it_does_not_have_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["reproduce", "transfer", *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def entry(init: str, labels: str, *values: float) -> Entry:
    return Entry(init, labels, [{"AP": value, "AP50": 2 * value} for value in values])


def test_the_page_has_a_figure_tables_and_gains_with_their_intervals(tmp_path):
    found = {
        "FPN": Comparison(
            [
                entry("random", "100", 4.0, 5.0, 6.0),
                entry("runs/moco", "100", 9.0, 10.0, 11.0),
                entry("random", "400", 8.0, 8.0, 8.0),
                entry("runs/moco", "400", 12.0, 12.0, 12.0),
            ]
        ),
        "C4": Comparison([entry("random", "100", 1.0), entry("runs/moco", "100", math.nan)]),
    }
    context = {"command": "moco reproduce transfer", "machine": "2 CPU cores, fp32", "torch": "2", "date": "today"}
    path = write_transfer(found, context | {"setting": "Drawn images.", "scale": "cpu"}, tmp_path, "transfer-cpu")
    text = path.read_text()
    assert "| moco | 100 | 3 | 10.0 ± 1.0 | 20.0 ± 2.0 |" in text
    # Two means of three runs with a standard deviation of 1 each: t (4 degrees) * sqrt(2 / 3).
    assert "- 100 labelled images: moco is +5.0 ± 2.3 points of AP from random weights." in text
    assert "- 400 labelled images: moco is +4.0 ± 0.0 points of AP from random weights." in text
    assert "He et al. 2020" in text
    assert (tmp_path / "transfer-cpu.png").is_file()
    assert "Of other data" in text
    paper = {"voc-r50-c4": Comparison([entry("random", "all", 33.0)], "voc-r50-c4")}
    path = write_transfer(paper, context | {"setting": "VOC.", "scale": "paper"}, tmp_path, "transfer-paper")
    assert "| MoCo IN-1M, He et al. 2020, 4.2, mean of 5 runs | all | published | 55.9 | 81.5 |" in path.read_text()
    assert "Of other data" not in path.read_text()
    assert json.loads((tmp_path / "transfer-cpu.json").read_text())["results"]["FPN"][0]["init"] == "random"
