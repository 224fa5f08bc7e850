"""The options of `moco detect`."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from moco.runs.options import Above0, AtLeast0, AtLeast1, Range
from moco.transfer.config import LabelledData, Schedule, TransferConfig

KINDS = {
    "voc": "PASCAL VOC's folders: VOC2007, or one with VOC2007 and VOC2012 in it, or one's own in that layout",
    "coco": "COCO's JSON, a file or a folder with one for training and one for validation",
    "yolo": "YOLO's text files beside images, with data.yaml or classes.txt",
    "shapes": "drawn by the program: up to four objects an image, with boxes and masks; no download",
}
"""Kinds of sets of annotated images, by the word before the colon."""


@dataclass(frozen=True)
class Model:
    """The detector around the encoder."""

    structure: Literal["c4", "dc5", "fpn"] = "c4"
    """c4: the heads read conv4, conv5 is the box head; dc5: conv5 dilated (appendix A.1); fpn: a feature pyramid."""
    masks: bool = False
    """Predict a mask for each object as well (Mask R-CNN; c4 and fpn)."""
    keypoints: bool = False
    """Predict the keypoints of each object as well (fpn)."""
    head_width: Annotated[float, Above0] = 1.0
    """Widths of the new layers as a multiple of the published ones: below 1 for small images on a CPU."""
    regions: Annotated[int, Range(4)] = 512
    """Regions of an image that the box head is trained on: fewer cost less."""
    normalisation: str = "auto"
    """Mean and standard deviation of the colours: auto: those of the images that the given weights were trained on;
    imagenet, cifar, or both in numbers: R,G,B/R,G,B of values in 0..1."""


@dataclass(frozen=True)
class DetectionSchedule(Schedule):
    """The schedule, and the sizes of training images."""

    sides: Annotated[tuple[int, ...], AtLeast1] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Shorter sides in pixels, of which each training image is resized to a random one."""
    max_side: Annotated[int, AtLeast1] = 1333
    """The longer side in pixels is at most this."""


@dataclass(frozen=True)
class Evaluation:
    """How the detector is evaluated."""

    metric: Literal["voc07", "voc", "coco"] = "voc07"
    """voc07: VOC's with 11 points; voc: the area under the curve (from 2010 on); coco: COCO's, also of masks and
    keypoints."""
    test_side: Annotated[int, AtLeast1] = 800
    """Shorter side in pixels of an image that is evaluated."""
    precise_bn: Annotated[int, AtLeast0] = 200
    """Batches over which BN's statistics are computed anew before an evaluation; 0: those of training are used."""
    proposals: Annotated[int, AtLeast1] = 1000
    """Proposals of an image that the box head classifies in an evaluation: fewer cost less."""
    test_images: Annotated[int | None, AtLeast1] = None
    """Evaluate on so many of the test images, at equal distances; None: on all."""


@dataclass(frozen=True)
class DetectionConfig(TransferConfig):
    """What a run of `moco detect` is made of."""

    task: Annotated[str, tyro.conf.Suppress] = "detect"
    data: LabelledData = field(default_factory=lambda: LabelledData(""))
    model: Model = field(default_factory=Model)
    training: DetectionSchedule = field(default_factory=DetectionSchedule)
    evaluation: Evaluation = field(default_factory=Evaluation)


def widths(model: Model) -> dict[str, int]:
    """The widths of the new layers of a structure, by the arguments of `build_detector`."""
    published: dict[str, dict[str, int]] = {
        "c4": {"mask_width": 256},
        "dc5": {"neck": 512, "width": 1024},
        "fpn": {"pyramid": 256, "convs": 256, "width": 1024, "mask_convs": 256, "keypoint_convs": 512},
    }
    return {name: max(8, round(width * model.head_width)) for name, width in published[model.structure].items()}


def options_of(model: Model, keypoints: int) -> dict[str, Any]:
    """All arguments of `build_detector` but the encoder and the classes; `keypoints` an object has."""
    options: dict[str, Any] = dict(widths(model))
    if model.masks:
        options["masks"] = True
    if model.keypoints:
        options["keypoints"] = keypoints
    return options
