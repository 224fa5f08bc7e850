"""The learning rate as a pure function of the position in the run."""

import math

from moco.runs.config import Training


def learning_rate(training: Training, step: int, steps_per_unit: float) -> float:
    """The learning rate of a step (0, 1, ...): warm-up from 0, linear, then the schedule.

    Args:
        steps_per_unit: steps in an epoch, or 1 for a run whose length is given in steps (`training.iterations`).
    """
    position, length = step / steps_per_unit, training.iterations or training.epochs
    if position < training.warmup:
        return training.lr * (position + 1 / steps_per_unit) / (training.warmup + 1 / steps_per_unit)
    if training.schedule == "cosine":
        progress = (position - training.warmup) / (length - training.warmup)
        return training.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    if training.schedule == "exponential":
        return training.lr * training.gamma ** math.floor(position / training.decay_every)
    return training.lr * training.gamma ** sum(position >= milestone for milestone in training.milestones)
