"""Mean intersection over union, from a confusion matrix that is summed over images and ranks."""

from typing import NamedTuple

import torch
from torch import Tensor

from moco.runtime.ranks import gather
from moco.transfer.segmentation.fcn import IGNORED


class Scores(NamedTuple):
    """How well pixels are classified; all in 0 .. 1.

    Attributes:
        iou: float64 (num_classes,), intersection over union of each class; NaN for one that is neither in the labels
            nor predicted.
        miou: its mean over the other classes.
        accuracy: the share of pixels whose class is right.
    """

    iou: Tensor
    miou: float
    accuracy: float


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts of pixels, int64 (num_classes, num_classes): rows are labels, columns what was predicted.

    Matrices of several images are summed with +, those of several ranks by `over_ranks`.

    Args:
        predicted: integers of any shape, below num_classes.
        labels: integers of the same shape, below num_classes or 255, which is not counted.
    """
    counted = labels != IGNORED
    pairs = labels[counted].long() * num_classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def over_ranks(matrix: Tensor) -> Tensor:
    """The sum of the matrices of all ranks, on every rank."""
    return gather(matrix[None]).sum(0)


def scores(matrix: Tensor) -> Scores:
    """IoU is TP / (TP + FP + FN) of all pixels of all images (not a mean over images); NaN where there are none."""
    counts = matrix.double()
    right = counts.diagonal()
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    return Scores(iou, float(iou.nanmean()), float(right.sum() / counts.sum()))
