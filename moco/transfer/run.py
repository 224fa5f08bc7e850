"""A transfer run is a folder, as a run of pre-training is.

config.yaml, checkpoints/, metrics.jsonl, timing.jsonl, tensorboard/, log.txt: as in runs/folder.py.
results.json     what was measured at the end
report.html      all of it, as a page
"""

from pathlib import Path
from typing import ClassVar

from moco.runs.folder import RunFolder, read_values
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.config import MAY_CHANGE, TransferConfig, check
from moco.transfer.detection.config import DetectionConfig
from moco.transfer.segmentation.config import SegmentationConfig


class TransferRun(RunFolder[TransferConfig]):
    """The folder of a transfer run."""

    may_change = MAY_CHANGE
    check = staticmethod(check)


class FinetuneRun(TransferRun):
    """Of `moco finetune`."""

    defaults: ClassVar[TransferConfig] = ClassificationConfig()  # type: ignore[misc]
    command = "moco finetune"


class DetectionRun(TransferRun):
    """Of `moco detect`."""

    defaults: ClassVar[TransferConfig] = DetectionConfig()  # type: ignore[misc]
    command = "moco detect"


class SegmentationRun(TransferRun):
    """Of `moco segment`."""

    defaults: ClassVar[TransferConfig] = SegmentationConfig()  # type: ignore[misc]
    command = "moco segment"


RUNS: dict[str, type[TransferRun]] = {
    "finetune": FinetuneRun,
    "detect": DetectionRun,
    "segment": SegmentationRun,
}
"""By task."""


def task_of(path: Path) -> str | None:
    """The task of the transfer run in a folder, by RUNS; None if it holds another run, or none."""
    file = path / "config.yaml"
    task = read_values(file).get("task") if file.is_file() else None
    return task if task in RUNS else None
