"""The learning rate as a pure function of the position in the run."""

import math

from moco.config import Training


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (0, 1, ...): warm-up from 0, linear, then the schedule."""
    epoch = step / steps_per_epoch
    if epoch < training.warmup_epochs:
        return training.lr * (epoch + 1 / steps_per_epoch) / (training.warmup_epochs + 1 / steps_per_epoch)
    if training.schedule == "cosine":
        progress = (epoch - training.warmup_epochs) / (training.epochs - training.warmup_epochs)
        return training.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if training.schedule == "exponential":
        return training.lr * training.gamma ** math.floor(epoch / training.decay_epochs)
    return training.lr * training.gamma ** sum(epoch >= milestone for milestone in training.milestones)
