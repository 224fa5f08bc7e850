"""Learning rates worked out by hand."""

import pytest

from moco.runs.config import Training
from moco.training.schedules import learning_rate


def rates(training: Training, steps_per_epoch: int, *steps: int) -> list[float]:
    return [learning_rate(training, step, steps_per_epoch) for step in steps]


def test_step_falls_at_the_first_step_of_a_milestone():
    training = Training(lr=0.03, schedule="step", milestones=(120, 160), gamma=0.1)
    found = rates(training, 10, 0, 1199, 1200, 1599, 1600, 1999)
    assert found == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])


def test_milestones_may_lie_within_an_epoch():
    training = Training(lr=1.0, schedule="step", milestones=(0.5,), gamma=0.2)
    assert rates(training, 4, 1, 2, 3) == pytest.approx([1.0, 0.2, 0.2])


def test_cosine_goes_from_its_highest_to_0():
    training = Training(lr=2.0, epochs=4, schedule="cosine")
    # 1 + cos of 0, pi/4, pi/2, 3 pi/4
    assert rates(training, 1, 0, 1, 2, 3) == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5])
    # within an epoch too: the last step of 400 has 0.5 * (1 + cos(pi * 399/400))
    assert rates(training, 100, 399)[0] == pytest.approx(2 * 1.5421e-5, rel=1e-3)


def test_exponential_falls_every_so_many_epochs():
    training = Training(lr=0.12, schedule="exponential", gamma=0.9, decay_every=0.5)
    assert rates(training, 4, 0, 1, 2, 3, 4) == pytest.approx([0.12, 0.12, 0.108, 0.108, 0.0972])


def test_warm_up_rises_linearly_and_meets_the_schedule():
    training = Training(lr=1.0, epochs=5, schedule="cosine", warmup=1)
    # 4 steps of warm-up are fifths of the highest rate, which the step after them has.
    assert rates(training, 4, 0, 1, 2, 3, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    # Half-way between the warm-up's end and the run's: half.
    assert rates(training, 4, 12) == pytest.approx([0.5])


def test_warm_up_before_steps_keeps_the_milestones_where_they_are():
    training = Training(lr=1.0, epochs=5, schedule="step", warmup=2, milestones=(3,))
    assert rates(training, 1, 0, 1, 2, 3) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.1])
