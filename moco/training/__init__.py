"""Pre-training: the step, the loop, optimisers, schedules, and what is logged."""

from moco.training.build import device_of, resolved
from moco.training.estimate import Estimate, estimate
from moco.training.log import start_logging
from moco.training.loop import pretrain
from moco.training.step import Diverged, Pretraining

__all__ = ["Diverged", "Estimate", "Pretraining", "device_of", "estimate", "pretrain", "resolved", "start_logging"]
