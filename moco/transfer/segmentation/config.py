"""The options of `moco segment`."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from moco.runs.options import Above0, AtLeast0, AtLeast1, Range
from moco.transfer.config import LabelledData, Schedule, TransferConfig

KINDS = {
    "voc": "PASCAL VOC's folders: VOC2012, or the one above it; train_aug's masks in SegmentationClassAug",
    "cityscapes": "Cityscapes' folders leftImg8bit and gtFine; 19 classes",
    "own": "a folder with images/ and masks/ (PNG, the value of a pixel is its class); classes.txt names them",
    "shapes": "drawn by the program: one object an image before a background; no download",
}
"""Kinds of sets of images with a class for every pixel, by the word before the colon."""


@dataclass(frozen=True)
class Model:
    """The network around the encoder."""

    head_width: Annotated[float, Above0] = 1.0
    """Widths of the new layers as a multiple of the published ones: below 1 for small images on a CPU."""
    normalisation: str = "auto"
    """Mean and standard deviation of the colours: auto: those of the images that the given weights were trained on;
    imagenet, cifar, or both in numbers: R,G,B/R,G,B of values in 0..1."""


@dataclass(frozen=True)
class SegmentationSchedule(Schedule):
    """The schedule, and the size of training images."""

    lr: Annotated[float, Above0] = 0.003
    """Peak learning rate."""
    iterations: Annotated[int, AtLeast1] = 30_000
    """Steps in all."""
    milestones: Annotated[tuple[int, ...], AtLeast0] = (21_000, 27_000)
    """Steps at which the learning rate is multiplied by gamma."""
    warmup: Annotated[int, AtLeast0] = 0
    """Steps in which the learning rate rises linearly from a thousandth."""
    crop: Annotated[int, Range(16)] = 513
    """Height and width in pixels of the crop of a training image."""


@dataclass(frozen=True)
class Evaluation:
    """How the network is evaluated: on whole images, one by one."""

    test_images: Annotated[int | None, AtLeast1] = None
    """Evaluate on so many of the test images, at equal distances; None: on all."""


@dataclass(frozen=True)
class SegmentationConfig(TransferConfig):
    """What a run of `moco segment` is made of."""

    task: Annotated[str, tyro.conf.Suppress] = "segment"
    data: LabelledData = field(default_factory=lambda: LabelledData(""))
    model: Model = field(default_factory=Model)
    training: SegmentationSchedule = field(default_factory=SegmentationSchedule)
    evaluation: Evaluation = field(default_factory=Evaluation)
