"""The end-to-end mechanism (Fig. 2a): the dictionary is the mini-batch, and both encoders are trained."""

import copy
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.loss import InfoNCE, info_nce
from moco.contrast.mechanism import check_temperature, mean_of, with_head
from moco.contrast.ranks import gather, gather_with_gradient, local, rank
from moco.contrast.shuffle import permutation


class EndToEnd(nn.Module):
    """Contrast within the mini-batch: a query's negatives are the keys of the other images of all ranks.

    `query` and `key` are both to be trained; they begin alike. Averaging the gradients over ranks is left to the loop.

    Args:
        encoder, dim, temperature, head, hidden, symmetric, bn_group, shuffle, num_features: as of `MoCo`.

    Raises:
        ValueError: a number out of range, or an encoder whose features cannot be told.
    """

    steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 128,
        temperature: float = 0.07,
        *,
        head: Literal["linear", "mlp"] = "linear",
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
        (result,) = self.parts(view1, view2)
        return result

    def parts(self, view1: Tensor, view2: Tensor, count: int = 1) -> Iterator[InfoNCE]:
        """The same, for a loop that accumulates gradients. Raises ValueError at a `count` other than 1."""
        if count != 1:
            raise ValueError("end-to-end: the mini-batch is the dictionary, and cannot be taken in parts")
        pairs = [(view1, view2), (view2, view1)] if self.symmetric else [(view1, view2)]
        yield mean_of([self._look_up(*pair, stream) for stream, pair in enumerate(pairs)])
        if self.training:
            self.steps += 1

    def _look_up(self, query_view: Tensor, key_view: Tensor, stream: int) -> InfoNCE:
        query = F.normalize(self.query(query_view).float(), dim=1)
        return look_up_in_batch(query, self.encode_keys(key_view, stream), self.temperature)

    def encode_keys(self, view: Tensor, stream: int = 0) -> Tensor:
        """Keys of every rank's view, in the order of the ranks, with gradient; encoded in another (shuffling BN)."""
        if not (self.shuffle and self.training):
            return gather_with_gradient(F.normalize(self.key(view).float(), dim=1))
        view = gather(view)
        order = permutation(len(view), self.steps * 2 + stream)
        keys = gather_with_gradient(F.normalize(self.key(view[local(order)]).float(), dim=1))
        return keys[order.argsort()]


def look_up_in_batch(query: Tensor, keys: Tensor, temperature: float) -> InfoNCE:
    """This rank's queries (n, dim) among the keys of all ranks (world_size * n, dim), both normalised.

    The positive of a query is the key of its image, the negatives are those of all others.
    """
    own = torch.arange(len(query), device=query.device) + rank() * len(query)
    is_own = torch.arange(len(keys), device=query.device) == own[:, None]
    return info_nce(query, keys[own], keys, temperature, excluded=is_own)
