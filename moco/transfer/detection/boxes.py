"""Boxes (n, 4) as x1, y1, x2, y2 in pixels, continuous coordinates: their coding as deltas, clipping."""

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""A predicted box is at most this many times (its exponential) as wide or high as the box that it starts from."""
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What deltas are multiplied by, so that they have about unit variance (Fast R-CNN)."""
Weights = tuple[float, float, float, float]


def encode(boxes: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """The deltas dx, dy, dw, dh, (n, 4), that move `boxes` to `targets`, both float (n, 4) (R-CNN, appendix C)."""
    x, y, width, height = _centres(boxes)
    target_x, target_y, target_width, target_height = _centres(targets)
    deltas = (
        (target_x - x) / width,
        (target_y - y) / height,
        torch.log(target_width / width),
        torch.log(target_height / height),
    )
    return torch.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)], dim=-1)


def decode(boxes: Tensor, deltas: Tensor, weights: Weights) -> Tensor:
    """The boxes to which deltas (..., 4) move `boxes`; the inverse of `encode`. Both broadcast; float32."""
    x, y, width, height = _centres(boxes.float())
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.float().unbind(-1), weights, strict=True))
    centre_x, centre_y = dx * width + x, dy * height + y
    half_width = 0.5 * (dw.clamp(max=MAX_LOG_SCALE).exp() * width)
    half_height = 0.5 * (dh.clamp(max=MAX_LOG_SCALE).exp() * height)
    corners = (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)
    return torch.stack(corners, dim=-1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, centre y, width, height of boxes (..., 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut at the borders of an image of (height, width)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes (..., 4) are wider and higher than 0: bool (...)."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
