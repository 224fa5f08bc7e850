"""What all mechanisms have in common: each says these facts about itself, so that nobody asks which one it is."""

from collections.abc import Callable

from torch import nn

from moco.contrast.loss import InfoNCE

Backward = Callable[[Callable[[], InfoNCE]], None]
"""Runs the forward pass that it is given, and back-propagates its loss."""


class Mechanism(nn.Module):
    """A mechanism of contrastive learning (Fig. 2): `forward` takes the views of a batch and gives an `InfoNCE`.

    A mechanism that can work on a batch in parts has a method `accumulate`, as `MoCo.accumulate`.

    Attributes:
        query: the encoder that is wanted in the end, with `backbone` and `head`.
        num_views: how many views of an image `forward` takes.
        takes_index: whether `forward` takes the images' indices, int64 (n,), after the views.
    """

    query: nn.Sequential
    num_views = 2
    takes_index = False

    def chance_loss(self, batch_size: int) -> float:
        """The loss in nats of a model at chance: all keys equally similar; `batch_size` is over all ranks."""
        raise NotImplementedError

    def keys_per_step(self, batch_size: int) -> int:
        """How many keys a step encodes, over all ranks."""
        return batch_size
