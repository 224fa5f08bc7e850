"""What is computed on each region: pooling, box head, mask head, their losses, and the detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from moco.runtime.ranks import mean_over_ranks
from moco.transfer.detection.boxes import ROI_WEIGHTS, clip, decode, encode
from moco.transfer.detection.instances import Detections, Target
from moco.transfer.detection.matcher import NEGATIVE, POSITIVE, match
from moco.transfer.detection.nms import first_of_nms
from moco.transfer.detection.sampler import Order, sample

SAMPLED = 512
"""Regions of an image in the losses, by default, at most a quarter of them with an object."""
FOREGROUND = 0.25
MIN_OVERLAP = 0.5
MIN_SCORE = 0.05
NMS = 0.5
DETECTIONS = 100


@dataclass
class Regions:
    """The regions of one image in the losses, those with an object first.

    Attributes:
        boxes: float32 (r, 4).
        classes: int64 (r,), the number of classes for background.
        objects: int64 (r,), which object of the image; for background without meaning.
        foreground: how many have an object.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    foreground: int


def match_regions(boxes: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The object of each box and its label, 1 or 0: int64 (p,), int64 (p,)."""
    return match(target.boxes, boxes, MIN_OVERLAP, MIN_OVERLAP, each_object=False)


@torch.no_grad()
def sample_regions(
    proposals: Tensor, target: Target, num_classes: int, order: Order, number: int = SAMPLED
) -> tuple[Regions, Tensor]:
    """Regions for the losses, of the proposals (p, 4) and, after them, the objects' own boxes; and their rows there."""
    boxes = torch.cat([proposals, target.boxes])
    objects, labels = match_regions(boxes, target)
    positives, negatives = sample(labels == POSITIVE, labels == NEGATIVE, number, FOREGROUND, order)
    rows = torch.cat([positives, negatives])
    classes = torch.full_like(rows, num_classes)
    classes[: len(positives)] = target.classes[objects[positives]]
    return Regions(boxes[rows], classes, objects[rows], len(positives)), rows


def levels_of(boxes: Tensor, number: int) -> Tensor:
    """The level that each box (r, 4) is pooled from, from 0: one of 224 x 224 pixels from level 2 (FPN, equation 1)."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = (4 + torch.log2(sides / 224 + 1e-8)).floor() - 2
    return levels.clamp(0, number - 1).long()


def pool(features: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int) -> Tensor:
    """ROIAlign, aligned, with as many samples as a bin has pixels: (r, c, size, size), image after image.

    In float32 at least, as a box in bfloat16 is off by pixels.
    """
    images = torch.cat([box.new_full((len(box), 1), number) for number, box in enumerate(boxes)])
    rois = torch.cat([images, torch.cat(list(boxes))], dim=1)
    if len(features) == 1:
        return _align(features[0], rois, strides[0], size)
    levels = levels_of(torch.cat(list(boxes)), len(features))
    rows = [(levels == number).nonzero()[:, 0] for number in range(len(features))]
    pooled = [
        _align(level, rois[own], stride, size) for level, stride, own in zip(features, strides, rows, strict=True)
    ]
    return torch.cat(pooled).index_select(0, torch.cat(rows).argsort())


def _align(features: Tensor, rois: Tensor, stride: int, size: int) -> Tensor:
    wide = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        pooled: Tensor = roi_align(features.to(wide), rois.to(wide), size, 1 / stride, sampling_ratio=0, aligned=True)
    return pooled.to(features.dtype)


def msra(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Normal weights by fan out, biases 0."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv_bn_relu(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    msra(convolution)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


class BoxHead(nn.Module):
    """3x3 convolutions with BN, then fully connected layers, each with ReLU: (r, c, s, s) to (r, width).

    Args:
        channels: c.
        size: s.
        convs: channels of the convolutions.
        widths: of the fully connected layers.
    """

    def __init__(self, channels: int, size: int, convs: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        inputs = [channels, *convs]
        self.convs = nn.Sequential(*(conv_bn_relu(a, b) for a, b in zip(inputs, convs, strict=False)))
        lengths = [inputs[-1] * size**2, *widths]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in zip(lengths, widths, strict=False))
        for layer in self.fcs:
            nn.init.kaiming_uniform_(layer.get_parameter("weight"), a=1)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, regions: Tensor) -> Tensor:
        vectors: Tensor = self.convs(regions).flatten(1)
        for layer in self.fcs:
            vectors = F.relu(layer(vectors))
        return vectors


class BoxPredictor(nn.Module):
    """Logits of the classes and, last, background; and four deltas for each class."""

    def __init__(self, length: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Linear(length, num_classes + 1)
        self.deltas = nn.Linear(length, 4 * num_classes)
        for layer, std in ((self.classes, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(r, length) to logits float32 (r, classes + 1) and deltas float32 (r, classes, 4)."""
        return self.classes(vectors).float(), self.deltas(vectors).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """3x3 convolutions with BN, a transposed one of stride 2, a 1x1 one: (r, c, s, s) to (r, classes, 2s, 2s)."""

    def __init__(self, channels: int, convs: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        inputs = [channels, *convs]
        self.convs = nn.Sequential(*(conv_bn_relu(a, b) for a, b in zip(inputs, convs, strict=False)))
        self.deconv = nn.ConvTranspose2d(inputs[-1], width, 2, stride=2)
        self.predictor = nn.Conv2d(width, num_classes, 1)
        msra(self.deconv)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.get_parameter("bias"))

    def forward(self, regions: Tensor) -> Tensor:
        logits: Tensor = self.predictor(F.relu(self.deconv(self.convs(regions))))
        return logits.float()


def box_losses(
    logits: Tensor, deltas: Tensor, regions: Sequence[Regions], targets: Sequence[Target], beta: float
) -> dict[str, Tensor]:
    """`loss_cls`, the mean over all regions; `loss_box_reg`, a sum over foreground and coordinates divided by all."""
    classes = torch.cat([each.classes for each in regions])
    divisor = mean_over_ranks(len(classes), logits)
    foreground = (classes < deltas.shape[1]).nonzero()[:, 0]
    boxes = torch.cat([each.boxes[: each.foreground] for each in regions])
    truth = torch.cat([t.boxes[each.objects[: each.foreground]] for each, t in zip(regions, targets, strict=True)])
    predicted = deltas[foreground, classes[foreground]]
    wanted = encode(boxes, truth, ROI_WEIGHTS)
    distance = F.smooth_l1_loss(predicted, wanted, reduction="sum", beta=beta)
    return {
        "loss_cls": F.cross_entropy(logits, classes, reduction="sum") / divisor,
        "loss_box_reg": distance / divisor,
    }


def mask_loss(logits: Tensor, classes: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of each pixel of the true class's mask, the mean.

    Args:
        logits: (f, classes, m, m).
        classes: int64 (f,).
        masks: bool (f, m, m).
    """
    chosen = logits[torch.arange(len(classes), device=classes.device), classes]
    total = F.binary_cross_entropy_with_logits(chosen, masks.to(chosen), reduction="sum")
    return total / mean_over_ranks(masks.numel(), logits)


def select(boxes: Tensor, probabilities: Tensor, size: tuple[int, int]) -> Detections:
    """The detections of an image: above the least score, NMS within each class, the best of all classes.

    Args:
        boxes: (p, classes, 4).
        probabilities: (p, classes + 1), background last.
        size: (height, width) of the image.
    """
    valid = boxes.isfinite().flatten(1).all(dim=1) & probabilities.isfinite().all(dim=1)
    boxes, scores = clip(boxes[valid], size), probabilities[valid, :-1]
    rows, classes = (scores > MIN_SCORE).nonzero(as_tuple=True)
    boxes, scores = boxes[rows, classes], scores[rows, classes]
    best = first_of_nms(boxes, scores, classes, NMS, DETECTIONS)
    return Detections(boxes[best], scores[best], classes[best])


def detections(
    logits: Tensor, deltas: Tensor, proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> list[Detections]:
    """What `select` finds in each image: logits (r, classes + 1), deltas (r, classes, 4), proposals (p, 4) each."""
    boxes = decode(torch.cat(list(proposals))[:, None], deltas, ROI_WEIGHTS)
    counts = [len(proposal) for proposal in proposals]
    of_images = zip(boxes.split(counts), logits.softmax(dim=1).split(counts), sizes, strict=True)
    return [select(*one) for one in of_images]
