"""The region proposal network (Faster R-CNN, section 3.1): from feature maps to boxes that may hold an object."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.runtime.ranks import mean_over_ranks
from moco.transfer.detection.anchors import Anchors
from moco.transfer.detection.boxes import RPN_WEIGHTS, clip, decode, encode, has_area
from moco.transfer.detection.instances import Target
from moco.transfer.detection.matcher import IGNORED, NEGATIVE, POSITIVE, match
from moco.transfer.detection.nms import first_of_nms
from moco.transfer.detection.sampler import Order, sample

SAMPLED = 256
"""Anchors of an image in the loss, at most half of them positive; the losses are divided by it whatever was found."""
OVERLAP = (0.3, 0.7)
NMS = 0.7


@dataclass
class Limits:
    """How many proposals are kept: the best of each level before NMS, of the image after it."""

    before_nms: int
    after_nms: int


@dataclass
class Proposals:
    """Of one image, the highest score first: boxes float32 (p, 4), logits float32 (p,)."""

    boxes: Tensor
    logits: Tensor


class RPN(nn.Module):
    """A 3x3 convolution with ReLU, then an objectness logit and four deltas for each anchor; one for all levels.

    Args:
        channels: of the feature maps.
        anchors: of their levels.
        training_limits: of the proposals while training.
        limits: of those in evaluation.
    """

    def __init__(self, channels: int, anchors: Anchors, training_limits: Limits, limits: Limits) -> None:
        super().__init__()
        self.anchors, self.training_limits, self.limits = anchors, training_limits, limits
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors.per_position, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors.per_position, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level (n, c, h, w) the logits float32 (n, a) and deltas float32 (n, a, 4), in the anchors' order."""
        logits, deltas = [], []
        for level in features:
            hidden = F.relu(self.conv(level))
            logits.append(self.objectness(hidden).float().permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).float().permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        return logits, deltas

    def losses(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, targets: Sequence[Target], order: Order
    ) -> dict[str, Tensor]:
        """`loss_rpn_cls` (cross-entropy) and `loss_rpn_loc` (L1 on positive anchors), per 256 anchors and image.

        Args:
            anchors: of all levels, (a, 4).
            logits: (n, a).
            deltas: (n, a, 4).
        """
        matched = [match_anchors(anchors, target) for target in targets]
        labels = torch.stack([sample_anchors(label, order) for _, label in matched])  # (n, a)
        image, anchor = (labels == POSITIVE).nonzero(as_tuple=True)
        boxes = torch.stack(
            [_of_each_anchor(target, indices) for target, (indices, _) in zip(targets, matched, strict=True)]
        )
        wanted = encode(anchors[anchor], boxes[image, anchor], RPN_WEIGHTS)
        in_loss = labels != IGNORED
        divisor = mean_over_ranks(SAMPLED * len(targets), logits)
        classes = F.binary_cross_entropy_with_logits(logits[in_loss], labels[in_loss].float(), reduction="sum")
        boxes_loss = F.l1_loss(deltas[image, anchor], wanted, reduction="sum")
        return {"loss_rpn_cls": classes / divisor, "loss_rpn_loc": boxes_loss / divisor}

    @torch.no_grad()
    def propose(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Proposals]:
        """The proposals of each image: the best of each level, decoded, cut at the image's borders, NMS, the best.

        Args:
            anchors, logits, deltas: of each level, (a, 4), (n, a), (n, a, 4).
            sizes: (height, width) of the images, without padding.
        """
        limits = self.training_limits if self.training else self.limits
        boxes, scores, levels = [], [], []
        for number, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            score, best = logit.topk(min(limits.before_nms, logit.shape[1]), dim=1)
            moves = delta.gather(1, best[:, :, None].expand(-1, -1, 4))
            boxes.append(decode(anchor[best], moves, RPN_WEIGHTS))
            scores.append(score)
            levels.append(torch.full_like(best[0], number))
        of_images = zip(torch.cat(boxes, 1), torch.cat(scores, 1), sizes, strict=True)
        return [suppress(*one, torch.cat(levels), limits.after_nms) for one in of_images]


def match_anchors(anchors: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The object of each anchor and its label before sampling: int64 (a,), int64 (a,)."""
    return match(target.boxes, anchors, *OVERLAP, each_object=True)


def sample_anchors(labels: Tensor, order: Order) -> Tensor:
    """The labels (a,) of the anchors in the loss; the others are ignored."""
    positives, negatives = sample(labels == POSITIVE, labels == NEGATIVE, SAMPLED, 0.5, order)
    sampled = torch.full_like(labels, IGNORED)
    sampled[positives] = POSITIVE
    sampled[negatives] = NEGATIVE
    return sampled


def suppress(boxes: Tensor, logits: Tensor, size: tuple[int, int], levels: Tensor, number: int) -> Proposals:
    """The best `number` boxes of an image, NMS by level: boxes (b, 4), logits (b,), levels int64 (b,)."""
    finite = boxes.isfinite().all(dim=1) & logits.isfinite()  # an infinite side would be clipped to the image's
    boxes = clip(boxes, size)
    valid = has_area(boxes) & finite
    boxes, logits, levels = boxes[valid], logits[valid], levels[valid]
    kept = first_of_nms(boxes, logits, levels, NMS, number)
    return Proposals(boxes[kept], logits[kept])


def _of_each_anchor(target: Target, indices: Tensor) -> Tensor:
    """The box of each anchor's object, zeros where the image has none: (a, 4)."""
    return target.boxes[indices] if len(target) else target.boxes.new_zeros(len(indices), 4)
