"""The end-to-end mechanism (Fig. 2a): the dictionary is the mini-batch, and both encoders are trained."""

import copy
import math

import torch
from torch import Tensor, nn

from moco.contrast.batchnorm import permutation
from moco.contrast.collectives import exchange, gather_with_gradient, rank, world_size
from moco.contrast.heads import Head, normalised, with_head
from moco.contrast.loss import InfoNCE, info_nce, mean_of
from moco.contrast.mechanism import Mechanism, check_temperature


class EndToEnd(Mechanism):
    """Contrast within the mini-batch: a query's negatives are the keys of the other images of all ranks.

    `query` and `key` are both trained; they start equal.

    Args:
        encoder, dim, temperature, head, hidden, symmetric, bn_group, shuffle, num_features: as of `MoCo`.

    Raises:
        ValueError: a number out of range, or an encoder whose number of features is unknown.
    """

    steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 128,
        temperature: float = 0.07,
        *,
        head: Head = "linear",
        hidden: int | None = None,
        symmetric: bool = False,
        bn_group: int | None = None,
        shuffle: bool = True,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.symmetric, self.shuffle = temperature, symmetric, shuffle
        self.query = with_head(encoder, dim, head, hidden, bn_group, num_features)
        self.key = copy.deepcopy(self.query)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, view1: Tensor, view2: Tensor) -> InfoNCE:
        """The loss of one step; views (n, ...) as of `MoCo`."""
        pairs = self._pairs(view1, view2)
        q = [normalised(self.query(x_q)) for x_q, _ in pairs]  # queries: NxC
        k = [self.encode_keys(x_k, i) for i, (_, x_k) in enumerate(pairs)]  # keys of all ranks, with gradient
        if self.training:
            self.steps += 1
        return mean_of([contrast_in_batch(q_i, k_i, self.temperature) for q_i, k_i in zip(q, k, strict=True)])

    def encode_keys(self, view: Tensor, stream: int = 0) -> Tensor:
        """Keys of every rank's view (n, ...), in rank order, with gradient: float32 (world_size * n, dim).

        In training mode they are encoded in a permuted order (shuffling BN); the two views of a symmetric step, stream
        0 and 1, in two different ones.
        """
        if not (self.shuffle and self.training):
            return gather_with_gradient(normalised(self.key(view)))
        steps = self.steps if world_size() == 1 else self.steps.cpu()  # the CPU plans the exchange
        order = permutation(world_size() * len(view), steps * 2 + stream)
        keys = gather_with_gradient(normalised(self.key(exchange(view, order))))
        return keys[order.argsort().to(keys.device)]

    def chance_loss(self, batch_size: int) -> float:
        return math.log(batch_size)


def contrast_in_batch(queries: Tensor, keys: Tensor, temperature: float) -> InfoNCE:
    """This rank's queries (n, dim) against the keys of all ranks (world_size * n, dim), both L2-normalised.

    The positive of a query is the key of its image, the negatives are the keys of all others.
    """
    images = torch.arange(len(keys), device=queries.device)
    own = images[rank() * len(queries) :][: len(queries)]
    return info_nce(queries, keys[own], keys, temperature, (own, images))
