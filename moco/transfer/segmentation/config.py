"""The options of `moco segment`."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from moco.runs.options import Above0, Range
from moco.transfer.config import LabelledData, Schedule, TransferConfig


@dataclass(frozen=True)
class Model:
    """The network around the encoder."""

    head_width: Annotated[float, Above0] = 1.0
    """Widths of the new layers as a multiple of the published ones: below 1 for small images on a CPU."""


@dataclass(frozen=True)
class SegmentationSchedule(Schedule):
    """The schedule, and the size of training images."""

    lr: Annotated[float, Above0] = 0.003
    """Peak learning rate."""
    iterations: Annotated[int, Range(1)] = 30_000
    """Steps in all."""
    milestones: Annotated[tuple[int, ...], Range(0)] = (21_000, 27_000)
    """Steps at which the learning rate is multiplied by gamma."""
    warmup: Annotated[int, Range(0)] = 0
    """Steps in which the learning rate rises linearly from a thousandth."""
    crop: Annotated[int, Range(16)] = 513
    """Height and width in pixels of the crop of a training image."""


@dataclass(frozen=True)
class SegmentationConfig(TransferConfig):
    """What a run of `moco segment` is made of."""

    task: Annotated[str, tyro.conf.Suppress] = "segment"
    data: LabelledData = field(default_factory=LabelledData)
    model: Model = field(default_factory=Model)
    training: SegmentationSchedule = field(default_factory=SegmentationSchedule)
