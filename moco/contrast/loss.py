"""InfoNCE (Eq. 1), in memory that does not grow with K."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Images = tuple[Tensor, Tensor]
BLOCK = 2**22
"""So many logits at most are in memory at once: 16 MB."""


class InfoNCE(NamedTuple):
    loss: Tensor
    """Scalar, float32 or float64: the mean of Eq. 1 over the queries, in nats."""
    accuracy: Tensor
    """float32 scalar in 0..1, no gradient: how often the positive key wins against every negative (contrastive
    accuracy, the top-1 accuracy of the pretext task)."""


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, images: Images | None = None
) -> InfoNCE:
    """The log loss of a (K+1)-way softmax classifier that tries to classify each query as its positive key (Eq. 1).

    Args:
        query: (n, dim), L2-normalised, any floating dtype.
        positive: (n, dim), L2-normalised: the key of each query.
        negatives: (k, dim), L2-normalised: the dictionary, the same for every query. It may change before backward,
            unless it requires a gradient.
        temperature: tau > 0.
        images: int64 (n,) and (k,), of which image each query and each of the dictionary is: a query's own image is no
            negative. None: all are negatives.

    It is computed in float32 (of float64 in float64), also under autocast: at tau = 0.07 a bfloat16 logit is off by up
    to 0.06. It has a first derivative, no second.
    """
    with torch.autocast(query.device.type, enabled=False):
        scaled = full_precision(query) / temperature
        l_pos = (scaled * full_precision(positive)).sum(dim=1)  # N
        log_sum, largest = _LogSumExp.apply(scaled, full_precision(negatives), images)  # of the NxK l_neg: N, N
        loss = (torch.logaddexp(l_pos, log_sum) - l_pos).mean()  # -log softmax of the positive
    return InfoNCE(loss, (l_pos > largest).float().mean())


class _LogSumExp(torch.autograd.Function):
    """log sum_j exp(q . k_j) over the keys of a dictionary, and the largest q . k_j, both (n,).

    The gradient of the first is the mean key, weighted by softmax. Forward adds it up with the sum, block by block,
    both relative to the largest logit so far (online softmax). So the N x K logits are never in memory, and backward
    multiplies: it does not read the dictionary, into which the step's keys were enqueued meanwhile.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, dictionary: Tensor, images: Images | None) -> tuple[Tensor, Tensor]:
        largest = q.new_full((len(q),), -torch.inf)
        total, mean = torch.zeros_like(largest), torch.zeros_like(q)
        for keys, logits in _blocks(q, dictionary, images):
            before, largest = largest, torch.maximum(largest, logits.amax(dim=1))
            weights = logits.sub_(largest[:, None]).exp_()
            shrinkage = (before - largest).exp_()
            total = total * shrinkage + weights.sum(dim=1)
            if ctx.needs_input_grad[0]:
                mean.mul_(shrinkage[:, None]).addmm_(weights, keys)
        log_sum = largest + total.log()
        again = (q, dictionary, log_sum, *(images or ())) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(mean.div_(total[:, None]), *again)
        ctx.mark_non_differentiable(largest)
        return log_sum, largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
        mean, *again = ctx.saved_tensors
        of_dictionary = None
        if again:
            q, dictionary, log_sum, *images = again
            weighted = gradient[:, None] * q
            blocks = _blocks(q, dictionary, tuple(images) or None)
            of_dictionary = torch.cat([logits.sub_(log_sum[:, None]).exp_().T @ weighted for _, logits in blocks])
        return gradient[:, None] * mean, of_dictionary, None


def _blocks(q: Tensor, dictionary: Tensor, images: Images | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The dictionary in blocks (b, dim), each with its logits (n, b), which are negligible for a query's own image."""
    size = max(1, BLOCK // max(1, len(q)))
    for start in range(0, len(dictionary), size):
        keys = dictionary[start : start + size]
        logits = q @ keys.T
        if images is not None:
            own, others = images
            logits.masked_fill_(own[:, None] == others[start : start + size], torch.finfo(logits.dtype).min)
        yield keys, logits


def mean_of(results: list[InfoNCE]) -> InfoNCE:
    """The mean loss and accuracy of several contrasts (a symmetric step's two)."""
    losses, accuracies = zip(*results, strict=True)
    return InfoNCE(torch.stack(losses).mean(), torch.stack(accuracies).mean())


def full_precision(tensor: Tensor) -> Tensor:
    """In float32; float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
