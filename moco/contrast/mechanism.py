"""What all mechanisms have in common: each states these facts about itself, so that no code tests which one it is."""

from collections.abc import Callable

from torch import Tensor, nn

from moco.contrast.loss import InfoNCE

Backward = Callable[[Callable[[], InfoNCE]], None]
"""Runs the forward pass that it is given, and back-propagates its loss before it returns."""


class Mechanism(nn.Module):
    """A mechanism of contrastive learning (Fig. 2): `forward` takes the views of a batch and gives an `InfoNCE`.

    A mechanism that can accumulate gradients over micro-batches has a method `accumulate`, as `MoCo.accumulate`.

    Attributes:
        query: the encoder that is wanted in the end, with `backbone` and `head`.
        num_views: how many views of an image `forward` takes.
        symmetric: whether each of two views is also the other's query.
        takes_index: whether `forward` takes the images' indices, int64 (n,), after the views.
    """

    query: nn.Sequential
    num_views = 2
    symmetric = False
    takes_index = False

    def chance_loss(self, batch_size: int) -> float:
        """The loss in nats of a model at chance: all keys equally similar; `batch_size` is over all ranks."""
        raise NotImplementedError

    def keys_per_step(self, batch_size: int) -> int:
        """How many keys a step encodes, over all ranks."""
        return batch_size * (2 if self.symmetric else 1)

    def _pairs(self, view1: Tensor, view2: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What is encoded as queries, and what as their keys."""
        return [(view1, view2), (view2, view1)] if self.symmetric else [(view1, view2)]


def check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is in 0..1, not {momentum}")


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is above 0, not {temperature}")


def check_chunks(n: int, chunks: int) -> None:
    if chunks < 1 or n % chunks:
        raise ValueError(f"a batch of {n} does not divide into {chunks} gradient-accumulation steps")
