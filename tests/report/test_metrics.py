"""metrics.jsonl is read whatever keys it has, and whatever state a killed run left it in."""

import json
import math

import pytest

from moco.report.metrics import KNOWN, chance, read_curves
from moco.report.page import as_json
from moco.runs.config import Config, Contrast, Training
from moco.runs.folder import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def write(path, *lines) -> None:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def test_keys_known_and_unknown_each_on_lines_of_their_own(run):
    write(
        run.metrics,
        {"step": 10, "epoch": 0.5, "loss": 3.0},
        {"step": 20, "epoch": 1.0, "loss": 2.0, "mine": 7},
        {"step": 20, "epoch": 1.0, "feature_std": 0.9, "positive_histogram": [1] * 40, "note": "text", "flag": True},
    )
    curves = read_curves(run)
    assert curves == {
        "loss": {"step": [10, 20], "epoch": [0.5, 1.0], "value": [3.0, 2.0]},
        "positive_histogram": {"step": [20], "epoch": [1.0], "value": [[1] * 40]},
        "feature_std": {"step": [20], "epoch": [1.0], "value": [0.9]},
        "mine": {"step": [20], "epoch": [1.0], "value": [7]},
    }
    assert list(curves) == ["loss", "positive_histogram", "feature_std", "mine"]


def test_timing_has_the_metrics_epochs_and_of_a_step_the_last_line(run):
    write(run.metrics, {"step": 10, "epoch": 0.5, "loss": 1.0}, {"step": 20, "epoch": 1.0, "loss": 1.0})
    write(run.timing, {"step": 10, "waiting": 0.5}, {"step": 15, "waiting": 0.1}, {"step": 10, "waiting": 0.2})
    assert read_curves(run)["waiting"] == {"step": [10, 15], "epoch": [0.5, 0.75], "value": [0.2, 0.1]}


def test_what_is_not_finite_is_none_and_a_line_cut_off_is_left_out(run):
    write(run.metrics, '{"step": 1, "epoch": 0, "loss": NaN}\n', "[1]\n", "\n", '{"step": 2, "lo')
    curves = read_curves(run)
    assert curves == {"loss": {"step": [1], "epoch": [0], "value": [None]}}
    assert json.loads(as_json(curves)) == curves


def test_no_metrics_are_no_curves(run):
    assert read_curves(run) == {}


def test_every_known_figure_is_explained():
    assert all(known.title and known.about.endswith(".") for known in KNOWN.values())


@pytest.mark.parametrize(
    ("mechanism", "loss", "formula"),
    [
        ("moco", math.log(100), "chance, log(K+1)"),
        ("memory-bank", math.log(100), "chance, log(K+1)"),
        ("end-to-end", math.log(64), "chance, log(batch)"),
        ("moco-v3", 4 * 0.2 * math.log(64), "chance, 4 tau log(batch)"),
    ],
)
def test_the_loss_at_chance_is_the_recorded_one_and_computed_for_0_1_0_which_recorded_none(
    run, mechanism, loss, formula
):
    contrast = Contrast(mechanism=mechanism, queue_size=99, temperature=0.2)
    run = Run.create(run.path, Config(contrast=contrast, training=Training(batch_size=64)))
    assert chance(run) == (pytest.approx(loss), formula)
    write(run.metrics, {"step": 0, "chance_loss": 1.25})
    assert chance(run) == (1.25, formula)


def test_json_cannot_end_its_script_element():
    assert "<" not in as_json({"</script>": "<!--"})
