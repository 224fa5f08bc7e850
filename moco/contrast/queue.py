"""The dictionary as a queue (section 3.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The last `size` keys, first in, first out. All of its state is in the state dict.

    It starts full of random unit vectors, as the released code's does: they are easy negatives until real keys have
    replaced them.

    Attributes:
        keys: float32 (float64 after `.double()`), (size, dim), L2-normalised rows.
        enqueued: int64 scalar, how many keys were ever enqueued: the write position is `enqueued % size`. It is kept
            on the device of the keys, so that a GPU never waits for the CPU.
        total: the same number as an int, for what the CPU needs to know.

    Raises:
        ValueError: size or dim below 1.
    """

    keys: Tensor
    enqueued: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue holds at least 1 key of 1 dimension, not {size} of {dim}")
        keys = torch.randn(size, dim)
        self.register_buffer("keys", F.normalize(keys, dim=1, out=keys))  # in place: a large queue is there once
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.int64))
        self.total = 0

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the n oldest keys by keys (n, dim), wrapping around; of more than `size` the last ones stay."""
        size = len(self.keys)
        skipped = max(0, len(keys) - size)
        positions = self.enqueued + torch.arange(skipped, len(keys), device=keys.device)
        self.keys.index_copy_(0, positions % size, keys[skipped:].to(self.keys.dtype))
        self.enqueued += len(keys)
        self.total += len(keys)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.total = int(self.enqueued)
