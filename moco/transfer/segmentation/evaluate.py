"""A network for segmentation evaluated on a set of images by all ranks together."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather_objects, on_main, rank, world_size
from moco.transfer.segmentation.inference import infer
from moco.transfer.segmentation.miou import confusion, over_ranks, scores
from moco.transfer.segmentation.sets import SegmentationSet

log = logging.getLogger("moco")


@dataclass
class Evaluation:
    """What was measured on a set of images.

    Attributes:
        images: that were evaluated.
        unreadable: images that are left out because they cannot be read.
        classes: their names.
        confusion: int64 (classes, classes): rows are labels, columns what was predicted.
    """

    images: int
    unreadable: int
    classes: tuple[str, ...]
    confusion: Tensor

    @property
    def numbers(self) -> dict[str, float]:
        """In per cent."""
        found = scores(self.confusion)
        return {"mIoU": 100 * found.miou, "pixel accuracy": 100 * found.accuracy}

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Of each class its name, its labelled pixels, and its IoU in per cent; None if it is nowhere."""
        rows = zip(self.classes, self.confusion.sum(1).tolist(), scores(self.confusion).iou.tolist(), strict=True)
        return [
            {"class": name, "pixels": pixels, "IoU": None if iou != iou else 100 * iou} for name, pixels, iou in rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        counts = {"metric": "mIoU", "images": self.images, "unreadable": self.unreadable}
        return counts | {"numbers": self.numbers, "per_class": self.per_class}


def evaluate_segmentation(
    model: nn.Module,
    images: SegmentationSet,
    device: Device,
    workers: int | None = 0,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> Evaluation:
    """Measures a network; called on all ranks, which share the images and all have the result.

    It is the same whatever the number of ranks: each image counts once. One that cannot be read is left out, and
    counted in the log.

    Args:
        model: an `FCN` on the device, for the set's classes.
        progress: wraps the numbers of this rank's images.

    Raises UserError if no image can be read, or no pixel has a label.
    """
    classes, errors, done = len(images.classes), [], 0
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    numbers = progress(list(range(rank(), len(images), world_size())))
    for _, labels, predicted in infer(
        model, images.read, numbers, device, lambda number, error: errors.append((number, error)), workers
    ):
        matrix += confusion(predicted, labels, classes)
        done += 1
    unreadable = [error for _, error in sorted(entry for share in gather_objects(errors) for entry in share)]
    evaluation = Evaluation(sum(gather_objects(done)), len(unreadable), images.classes, over_ranks(matrix))
    on_main(lambda: _require(evaluation, unreadable))
    return evaluation


def _require(evaluation: Evaluation, unreadable: list[str]) -> None:
    if not evaluation.images:
        raise UserError(f"nothing to evaluate: none of {len(unreadable)} test images can be read: {unreadable[0]}")
    if not evaluation.confusion.any():
        raise UserError(f"nothing to evaluate: no pixel of {evaluation.images} test images has a label")
    if unreadable:
        total = evaluation.images + len(unreadable)
        log.warning(
            "evaluated without %d of %d test images, which cannot be read: %s", len(unreadable), total, unreadable[0]
        )
