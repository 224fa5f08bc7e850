"""What is read of a run's records."""

import math
from typing import Any

import pytest

from moco.diagnosis.records import Records
from moco.runs.config import Config, Contrast, Training
from moco.runs.options import with_options

CONFIG = Config(contrast=Contrast(queue_size=100), training=Training(epochs=3, batch_size=32))
FACTS = {"step": 0, "epoch": 0.0, "chance_loss": 1.5, "keys_per_step": 40, "images": 500}


def records(*lines: dict[str, Any], **options: Any) -> Records:
    return Records(with_options(CONFIG, **options), list(lines), [])


def test_facts_come_from_the_first_line() -> None:
    made = records(FACTS, {"step": 5, "epoch": 1.0})
    assert (made.chance, made.keys_per_step, made.images) == (1.5, 40, 500)
    assert made.steps_per_epoch == 500 / 32
    assert made.steps == math.ceil(3 * 500 / 32)
    assert made.filled_at == 3  # 100 keys, 40 a step
    assert records(FACTS, iterations=7).steps == 7


@pytest.mark.parametrize(("symmetric", "keys"), [(False, 32), (True, 64)])
def test_facts_of_a_run_that_did_not_record_them_follow_from_its_config(symmetric: bool, keys: int) -> None:
    made = records({"step": 8, "epoch": 0.5}, {"step": 16, "loss": 1.0}, symmetric=symmetric)
    assert made.chance == math.log(101)
    assert made.keys_per_step == keys
    assert made.images == 512
    assert made.steps == 48


def test_steps_that_follow_from_an_epoch_are_not_rounded_up_past_a_whole_number() -> None:
    """11 steps an epoch: 3 / 11 gives back the images to the last digits only."""
    assert records({"step": 3, "epoch": 3 / 11}).steps == 33


def test_what_is_not_known_is_infinite() -> None:
    made = records({"step": 0, "epoch": 0.0})
    assert (made.images, made.steps) == (math.inf, math.inf)
    assert records({"step": 1}, mechanism="end-to-end").chance == math.inf


def test_a_series_leaves_out_what_is_no_number() -> None:
    made = records({"step": 1, "loss": 2.0}, {"step": 2, "loss": "x"}, {"step": 3}, {"step": 4, "loss": 3})
    assert made.series("loss") == [(1, 2.0), (4, 3)]
    assert (made.last("loss"), made.last("knn"), made.step) == (3, None, 4)
    assert records().step == 0


@pytest.mark.parametrize(("number", "size", "means"), [(1, 1, 1), (39, 1, 39), (40, 2, 20), (59, 2, 29), (205, 10, 20)])
def test_a_smoothed_series_is_of_about_twenty_means_the_last_of_the_newest(number: int, size: int, means: int) -> None:
    found = records(*({"step": step, "loss": float(step)} for step in range(1, number + 1))).smooth("loss")
    assert len(found) == means
    assert found[-1] == (number, number - (size - 1) / 2)


@pytest.mark.parametrize(
    ("options", "filled"),
    [
        ({"mechanism": "end-to-end"}, 0),
        ({"mechanism": "moco-v3"}, 0),
        ({"mechanism": "memory-bank", "bank_momentum": 0.5}, 4 * 500 / 32),  # 0.5^4 < 0.1
        ({"mechanism": "memory-bank", "bank_momentum": 0.0}, 500 / 32),
        ({"mechanism": "memory-bank", "bank_momentum": 1.0}, math.inf),
    ],
)
def test_when_the_dictionary_is_filled(options: dict[str, Any], filled: float) -> None:
    assert records(FACTS, **options).filled_at == filled
