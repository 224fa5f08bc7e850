"""A map of features in two dimensions, on which near neighbours lie together.

It is found as the features were, by contrast: a query is a point, its positive one of its nearest neighbours, its
negatives are points drawn at random, and the similarity is t-SNE's. This is InfoNC-t-SNE (Damrich, Böhm, Hamprecht and
Kobak, *From t-SNE to UMAP with contrastive learning*, ICLR 2023): its time grows with the points, not with their pairs.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 15
"""Of each point, as in the publication."""
_RATE = 1.0
"""Adam's learning rate at the start, in units of the start's standard deviation."""


def draw_map(
    features: Tensor,
    neighbours: Tensor,
    steps: int = 600,
    negatives: int = 128,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """Places of the points on the map: float32 (n, 2), a pure function of its input.

    Args:
        features: float32 (n, d), for the start: their two principal components.
        neighbours: int64 (n, k), of each point.
        progress: wraps the iteration over the steps.
    """
    n, k = neighbours.shape
    if k == 0:
        return torch.zeros(n, 2)
    generator = torch.Generator().manual_seed(0)
    points = _principal(F.normalize(features, dim=1)).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, steps)
    first = torch.zeros(n, dtype=torch.int64)
    for _ in progress(range(steps)):
        positive = F.embedding(neighbours.gather(1, torch.randint(k, (n, 1), generator=generator)), points)[:, 0]
        # All queries of a step share the negatives, as they share a queue.
        negative = F.embedding(torch.randint(n, (negatives,), generator=generator), points)
        near = (points - positive).square().sum(dim=1, keepdim=True)
        far = (points[:, :1] - negative[:, 0]).square() + (points[:, 1:] - negative[:, 1]).square()
        # InfoNCE (Eq. 1), with the logarithm of Cauchy's kernel in the place of cosine / temperature.
        logits = -torch.cat((near, far), dim=1).log1p()
        optimizer.zero_grad()
        F.cross_entropy(logits, first, reduction="sum").backward()
        optimizer.step()
        schedule.step()
    return points.detach()


def _principal(features: Tensor) -> Tensor:
    """The first two principal components, of standard deviation 1, with signs of our choice."""
    centred = features - features.mean(dim=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        *_, directions = torch.pca_lowrank(centred, q=min(2, *centred.shape), center=False)
    directions = directions * directions.sum(dim=0).sign()
    components = F.pad(centred @ directions, (0, 2 - directions.shape[1]))
    return components / components.std(dim=0).clamp(min=1e-6)
