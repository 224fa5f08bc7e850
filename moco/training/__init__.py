"""The loop, schedules, the monitor and what is told of a run while it goes."""

from moco.training.log import start_logging
from moco.training.loop import Pretraining, Stopped, pretrain

__all__ = ["Pretraining", "Stopped", "pretrain", "start_logging"]
