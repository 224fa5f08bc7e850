"""The loop, schedules, the monitor and what is told of a run while it goes."""

from moco.training.doctor import Finding, diagnose, write_findings
from moco.training.log import start_logging
from moco.training.loop import pretrain
from moco.training.pretraining import Diverged, Pretraining
from moco.training.signals import Stopped

__all__ = ["Diverged", "Finding", "Pretraining", "Stopped", "diagnose", "pretrain", "start_logging", "write_findings"]
