"""InfoNCE (Eq. 1)."""

from typing import NamedTuple

import torch
from torch import Tensor


class InfoNCE(NamedTuple):
    loss: Tensor
    """Scalar, float32 or float64: the mean of Eq. 1 over the queries, in nats."""
    accuracy: Tensor
    """float32 scalar in 0..1, no gradient: how often the positive key wins against every negative (contrastive
    accuracy, the top-1 accuracy of the pretext task)."""


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, excluded: Tensor | None = None
) -> InfoNCE:
    """The log loss of a (K+1)-way softmax classifier that tries to classify each query as its positive key (Eq. 1).

    Args:
        query: (n, dim), L2-normalised, any floating dtype.
        positive: (n, dim), L2-normalised: the key of each query.
        negatives: (k, dim), L2-normalised: the dictionary, the same for every query.
        temperature: tau > 0.
        excluded: bool (n, k), which of the dictionary is no negative of a query; None: all are negatives.

    It is computed in float32 (of float64 in float64), also under autocast: at tau = 0.07 a bfloat16 logit is off by up
    to 0.06.
    """
    with torch.autocast(query.device.type, enabled=False):
        scaled = full_precision(query) / temperature
        l_pos = (scaled * full_precision(positive)).sum(dim=1)  # N
        l_neg = scaled @ full_precision(negatives).T  # NxK
        if excluded is not None:
            l_neg = l_neg.masked_fill(excluded, torch.finfo(l_neg.dtype).min)
        # -log softmax of the positive, without a copy of the NxK logits to put the positive beside them.
        loss = (torch.logaddexp(l_pos, l_neg.logsumexp(dim=1)) - l_pos).mean()
    with torch.no_grad():
        accuracy = (l_pos > l_neg.amax(dim=1)).float().mean()
    return InfoNCE(loss, accuracy)


def mean_of(results: list[InfoNCE]) -> InfoNCE:
    """The mean loss and accuracy of several contrasts (a symmetric step's two)."""
    losses, accuracies = zip(*results, strict=True)
    return InfoNCE(torch.stack(losses).mean(), torch.stack(accuracies).mean())


def full_precision(tensor: Tensor) -> Tensor:
    """In float32; float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
