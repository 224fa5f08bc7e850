"""Which object each anchor or proposal belongs to."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match(objects: Tensor, boxes: Tensor, low: float, high: float, each_object: bool) -> tuple[Tensor, Tensor]:
    """The object that each of `boxes` (m, 4) overlaps most, of `objects` (n, 4), and what that makes of the box.

    As `match_overlaps`, from boxes. Without objects the index is 0 and every box is negative.
    """
    return match_overlaps(box_iou(objects, boxes), low, high, each_object)


def match_overlaps(overlaps: Tensor, low: float, high: float, each_object: bool) -> tuple[Tensor, Tensor]:
    """For each box the object that it overlaps most, the first of several, and its label.

    Args:
        overlaps: intersection over union of objects and boxes, float (n, m).
        low: below it a box is negative.
        high: from it on a box is positive; between both it is ignored.
        each_object: the boxes that overlap an object most are positive however little that is (all boxes for an object
            that none overlaps, as in Detectron2).

    Returns indices int64 (m,) and labels int64 (m,): 1 positive, 0 negative, -1 ignored.
    """
    if len(overlaps) == 0:
        nothing = torch.zeros(overlaps.shape[1], dtype=torch.int64, device=overlaps.device)
        return nothing, nothing.clone()
    best, indices = overlaps.max(dim=0)
    labels = torch.full_like(indices, IGNORED)
    labels[best < low] = NEGATIVE
    labels[best >= high] = POSITIVE
    if each_object and overlaps.shape[1]:
        nearest = (overlaps == overlaps.max(dim=1, keepdim=True).values).any(dim=0)
        labels[nearest] = POSITIVE
    return indices, labels
