"""InfoNCE (Eq. 1)."""

from typing import NamedTuple

import torch
from torch import Tensor


class InfoNCE(NamedTuple):
    loss: Tensor
    """float32 scalar: the mean of Eq. 1 over the queries, in nats."""
    accuracy: Tensor
    """float32 scalar in 0..1, no gradient: how often the positive wins against every negative (look-up accuracy)."""
    positive: Tensor
    """float32 (n,): q.k+ / temperature."""
    negatives: Tensor
    """float32 (n, k): q.k_i / temperature."""


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, excluded: Tensor | None = None
) -> InfoNCE:
    """The log loss of a (K+1)-way softmax that tells each query's positive key from K negatives (Eq. 1).

    Args:
        query: (n, dim), L2-normalised, any floating dtype.
        positive: (n, dim), L2-normalised: the key of each query.
        negatives: (k, dim), L2-normalised: the dictionary, the same for every query.
        temperature: tau > 0.
        excluded: bool (n, k), which of the dictionary is no negative of a query; None: all are.

    It is computed in float32, also under autocast: at tau = 0.07 a bfloat16 logit is off by up to 0.06.
    """
    with torch.autocast(query.device.type, enabled=False):
        scaled = query.float() / temperature
        positive_logits = (scaled * positive.float()).sum(dim=1)
        negative_logits = scaled @ negatives.float().T
        if excluded is not None:
            negative_logits = negative_logits.masked_fill(excluded, torch.finfo(torch.float32).min)
        # -log softmax of the positive, without a copy of the n x k logits to put the positive beside them.
        loss = (torch.logaddexp(positive_logits, negative_logits.logsumexp(dim=1)) - positive_logits).mean()
    with torch.no_grad():
        accuracy = (positive_logits > negative_logits.amax(dim=1)).float().mean()
    return InfoNCE(loss, accuracy, positive_logits, negative_logits)
