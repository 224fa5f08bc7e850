"""Anchors: the boxes that the RPN starts from, at every position of every feature map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

RATIOS = (0.5, 1.0, 2.0)
"""Height over width, at constant area."""


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float] = RATIOS) -> Tensor:
    """The anchors of one position, centred at 0: float32 (len(sizes) * len(ratios), 4), sizes outer; not rounded."""
    shapes = [(math.sqrt(size**2 / ratio), ratio * math.sqrt(size**2 / ratio)) for size in sizes for ratio in ratios]
    return torch.tensor([(-width / 2, -height / 2, width / 2, height / 2) for width, height in shapes])


class Anchors(nn.Module):
    """The anchors of all levels.

    Args:
        sizes: for each level, the square roots of its anchors' areas, in pixels.
        strides: for each level, pixels from one position to the next; the first is at 0.

    Attributes:
        per_position: anchors at a position.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.per_position = len(sizes[0]) * len(RATIOS)
        for level, level_sizes in enumerate(sizes):
            self.register_buffer(f"cell{level}", cell_anchors(level_sizes), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """For each feature map (n, c, h, w) float32 (h * w * per_position, 4): rows, then columns, then cell."""
        return [self._grid(level, features[level]) for level in range(len(features))]

    def _grid(self, level: int, features: Tensor) -> Tensor:
        cell, stride = self.get_buffer(f"cell{level}"), self.strides[level]
        height, width = features.shape[-2:]
        y = torch.arange(0, height * stride, stride, device=cell.device, dtype=cell.dtype)
        x = torch.arange(0, width * stride, stride, device=cell.device, dtype=cell.dtype)
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((x, y, x, y), dim=-1)  # (height, width, 4)
        return (shifts[:, :, None] + cell).reshape(-1, 4)
