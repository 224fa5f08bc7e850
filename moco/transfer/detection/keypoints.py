"""The keypoint head of Mask R-CNN (He et al. 2017, section 5): a heat map for each keypoint, loss, maxima."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.runtime.ranks import mean_over_ranks
from moco.transfer.detection.roi_heads import msra

SIDE = 56
"""Bins of a heat map, each way."""
_BLOCK = 2**24
"""Numbers of upsampled heat maps held at once."""


class KeypointHead(nn.Module):
    """3x3 convolutions with ReLU, a transposed one of stride 2, upsampling by 2: (r, c, 14, 14) to (r, k, 56, 56).

    Args:
        channels: c.
        number: k, the keypoints of an object.
        convs: channels of the convolutions.
    """

    def __init__(self, channels: int, number: int, convs: Sequence[int]) -> None:
        super().__init__()
        inputs = [channels, *convs]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, convs, strict=False))
        self.deconv = nn.ConvTranspose2d(inputs[-1], number, 4, stride=2, padding=1)
        for layer in (*self.convs, self.deconv):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            msra(layer)

    def forward(self, regions: Tensor) -> Tensor:
        """Logits, float32."""
        for layer in self.convs:
            regions = F.relu(layer(regions))
        logits: Tensor = self.deconv(regions).float()
        if len(logits) == 0:  # which interpolate() refuses
            return logits.new_zeros(0, logits.shape[1], SIDE, SIDE) + logits.sum()
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)


def bins(keypoints: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of a heat map in which each keypoint lies, and whether it is annotated and inside of the box.

    Args:
        keypoints: (r, k, 3) as x, y, visibility.
        boxes: (r, 4).

    Returns int64 (r, k), row * 56 + column, and bool (r, k).
    """
    corner, size = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    place = ((keypoints[..., :2] - corner) * (SIDE / size)).floor()
    place = torch.where(keypoints[..., :2] == boxes[:, None, 2:], SIDE - 1.0, place)  # the far border belongs to it
    inside = ((place >= 0) & (place < SIDE)).all(-1) & (keypoints[..., 2] > 0)
    column, row = torch.where(inside[..., None], place, 0).long().unbind(-1)
    return row * SIDE + column, inside


def keypoint_loss(logits: Tensor, keypoints: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy over the bins of a heat map, the mean over the keypoints that `bins` finds inside; 0 without any.

    Args:
        logits: (r, k, 56, 56).
        keypoints: (r, k, 3), those of the object of each box.
        boxes: (r, 4).
    """
    wanted, inside = bins(keypoints, boxes)
    total = F.cross_entropy(logits.flatten(2)[inside], wanted[inside], reduction="sum")
    return total / mean_over_ranks(inside.sum(), logits)


@torch.no_grad()
def locate(logits: Tensor, boxes: Tensor) -> Tensor:
    """The maximum of each heat map, upsampled (bicubic) to the pixels of its box, and its score.

    The score is its exponential over the sum of those of the 56 x 56 bins.

    Args:
        logits: float32 (r, k, 56, 56).
        boxes: float32 (r, 4).

    Returns float32 (r, k, 3) as x, y, score.
    """
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = sizes.ceil().long()
    found = logits.new_zeros(len(boxes), logits.shape[1], 3)
    by_size = pixels.prod(dim=1).argsort()
    for rows in _blocks(by_size, pixels, logits.shape[1]):
        width, height = pixels[rows].amax(dim=0).tolist()
        across, down = _bicubic(pixels[rows, 0], width), _bicubic(pixels[rows, 1], height)
        maps = down[:, None] @ logits[rows] @ across.transpose(1, 2)[:, None]  # (n, k, height, width)
        outside = (torch.arange(height, device=rows.device) >= pixels[rows, 1, None])[:, None, :, None] | (
            torch.arange(width, device=rows.device) >= pixels[rows, 0, None]
        )[:, None, None, :]
        best, index = maps.masked_fill(outside, -torch.inf).flatten(2).max(dim=2)
        place = torch.stack((index % width, index // width), dim=-1) + 0.5
        corner, stretch = boxes[rows, None, :2], (sizes[rows] / pixels[rows])[:, None]
        score = 1 / (logits[rows].flatten(2) - best[..., None]).exp().sum(dim=2)
        found[rows] = torch.cat((place * stretch + corner, score[..., None]), dim=-1)
    return found


def _blocks(order: Tensor, pixels: Tensor, keypoints: int) -> list[Tensor]:
    """Rows in this order, from small to large, as many together as memory holds."""
    width, height = pixels[order].unbind(1)
    blocks, start = [], 0
    areas = (torch.cummax(width, 0).values * torch.cummax(height, 0).values * keypoints).tolist() if len(order) else []
    for end in range(len(areas)):
        if end > start and (end + 1 - start) * areas[end] > _BLOCK:
            blocks.append(order[start:end])
            start = end
    return [*blocks, order[start:]] if areas else []


def _bicubic(sizes: Tensor, longest: int) -> Tensor:
    """Weights of the 56 bins in each of `sizes` (n,) pixels: float32 (n, longest, 56); PyTorch's, with a = -0.75."""
    place = (torch.arange(longest, device=sizes.device) + 0.5) * (SIDE / sizes[:, None].float()) - 0.5
    first = place.floor()
    weights = torch.zeros(len(sizes), longest, SIDE, device=sizes.device)
    for tap in (-1, 0, 1, 2):
        distance = (place - first - tap).abs()
        near = (1.25 * distance - 2.25) * distance.square() + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        bin_ = (first + tap).clamp(0, SIDE - 1).long()
        weights.scatter_add_(2, bin_[..., None], torch.where(distance <= 1, near, far)[..., None])
    return weights
