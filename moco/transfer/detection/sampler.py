"""Which anchors and proposals a loss is computed on: a few positives, filled up with negatives."""

from collections.abc import Callable

import torch
from torch import Tensor

Order = Callable[[int, torch.device], Tensor]
"""A permutation of 0 .. n-1 on a device: int64 (n,)."""


def random_order(n: int, device: torch.device) -> Tensor:
    """From PyTorch's generator of that device, as Detectron2 draws: the same seed gives the same sample."""
    return torch.randperm(n, device=device)


def index_order(n: int, device: torch.device) -> Tensor:
    """As they come: without random numbers, for tests."""
    return torch.arange(n, device=device)


def sample(positive: Tensor, negative: Tensor, number: int, fraction: float, order: Order) -> tuple[Tensor, Tensor]:
    """Indices of at most number * fraction positives, and of so many negatives that `number` are reached if possible.

    Args:
        positive, negative: which may be drawn, bool (n,).
        order: of the positives, then of the negatives: the first ones are taken.
    """
    positives, negatives = positive.nonzero()[:, 0], negative.nonzero()[:, 0]
    wanted = min(int(number * fraction), len(positives))
    taken = positives[order(len(positives), positives.device)[:wanted]]
    return taken, negatives[order(len(negatives), negatives.device)[: number - wanted]]
