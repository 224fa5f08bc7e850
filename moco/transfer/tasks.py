"""From a configuration to its task, and to a finished run in a folder."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from moco.runtime.device import choose_device
from moco.runtime.ranks import is_main, on_main, world_size
from moco.training.log import start_logging
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.classification.frozen import FrozenTask
from moco.transfer.classification.sets import open_sets as open_classified_sets
from moco.transfer.classification.task import ClassificationTask
from moco.transfer.config import TransferConfig, check
from moco.transfer.detection.config import DetectionConfig
from moco.transfer.detection.task import DetectionTask
from moco.transfer.detection.task import open_sets as open_detection_sets
from moco.transfer.loop import train
from moco.transfer.normalisation import normalisation_of_start, written
from moco.transfer.run import RUNS
from moco.transfer.segmentation.config import SegmentationConfig
from moco.transfer.segmentation.task import SegmentationTask
from moco.transfer.segmentation.task import open_sets as open_segmentation_sets
from moco.transfer.task import Measured, Task

log = logging.getLogger("moco")


def open_task(config: TransferConfig, facts: Mapping[str, Any] | None = None) -> Task:
    """The network of a configuration and its data. Raises UserError for what is not there, or does not fit.

    Args:
        facts: of a run that is trained, whose checkpoint fills the network next; None: it is to be trained.
    """
    if isinstance(config, ClassificationConfig):
        kind = ClassificationTask if config.model.protocol == "finetune" else FrozenTask
        return kind(config, open_classified_sets(config, facts), facts is not None)
    if isinstance(config, DetectionConfig):
        return DetectionTask(config, *open_detection_sets(config), facts is not None)
    assert isinstance(config, SegmentationConfig)
    return SegmentationTask(config, *open_segmentation_sets(config), facts is not None)


def train_run(config: TransferConfig, folder: Path, continued: bool = False) -> Measured:
    """Trains a run in its folder, new or continued, up to its results.

    Raises Stopped and UserError as `train`; UserError also where a run is there with other options.
    """
    compute = config.compute
    device = choose_device(compute.device, compute.precision, compute.channels_last)
    if compute.precision == "auto":
        config = replace(config, compute=replace(compute, precision="bf16" if device.bf16 else "fp32"))
    kind = RUNS[config.task]
    run = kind(folder)
    if continued:
        on_main(lambda: run.require(config))
    elif isinstance(config, DetectionConfig | SegmentationConfig) and config.model.normalisation == "auto":
        seen = on_main(lambda: written(normalisation_of_start(config.encoder.init)))
        config = replace(config, model=replace(config.model, normalisation=seen))  # type: ignore[arg-type]
    check(config, world_size())
    task = open_task(config)
    if not continued:
        on_main(lambda: kind.create(folder, config) and None)
    start_logging(run, is_main())
    with ExitStack() as held:
        on_main(lambda: held.enter_context(run.locked(wait=15 if continued else 0)))
        if isinstance(task, FrozenTask):
            return task.run(run, device, compute.workers)
        return train(config, task, run, device, continued)
