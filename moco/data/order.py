"""In what order images come: pure functions of (seed, epoch), so a run's position is one number, the step.

The images of all epochs stand in one endless row, and a step takes the next batch of it: a batch may begin in one epoch
and end in the next, and in every epoch every image comes once.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from moco.contrast.collectives import local
from moco.views.counter_rng import philox


class Asked(NamedTuple):
    """One rank's share of a batch."""

    epoch: Tensor
    """int64 (n,), on the CPU: in which epoch each image is asked for."""
    images: Tensor
    """int64 (n,), on the CPU: their numbers in the set."""


Plan = Iterable[Asked]
"""What is asked for, batch by batch."""

_ROUNDS = 8


@lru_cache(maxsize=64)
def _round_keys(seed: int, key: tuple[int, ...]) -> list[tuple[int, int]]:
    """An odd multiplier and a number to add for each round of the bijection."""
    words = torch.tensor((*key, 0, 0, 0)[:3])
    rounds = torch.arange(_ROUNDS) + (1 << 16)  # a stream that no view draws from
    numbers = philox((words[0], rounds, words[1], words[2]), seed).tolist()
    return [(((a << 31) ^ b) | 1, (c << 31) ^ d) for a, b, c, d in numbers]


def shuffled(position: Tensor, n: int, seed: int, *key: int) -> Tensor:
    """The images at some positions of a random permutation of 0..n-1, without the permutation in memory.

    A Feistel network is a bijection of all numbers of an even number of bits; a number that leaves 0..n-1 goes through
    it again until it is back inside (cycle walking, Black and Rogaway 2002), so it is a bijection of 0..n-1.

    Args:
        position: int64 (m,), each in 0..n-1.
        n: how many images there are, below 2**60.
        seed, key: which permutation; key is up to three numbers below 2**32, such as the epoch.

    Returns int64 (m,).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _round_keys(seed, key)
    result = position.clone()
    outside = torch.arange(len(result))
    while len(outside):
        left, right = result[outside] >> half, result[outside] & mask
        for multiplier, addend in keys:
            mixed = right * multiplier + addend  # modulo 2**64
            mixed = (mixed ^ (mixed >> 29)) * 0x1B873593CC9E2D51
            left, right = right, left ^ ((mixed >> 32) & mask)
        result[outside] = left << half | right
        outside = outside[result[outside] >= n]
    return result


def training_plan(n: int, batch: int, seed: int, start: int, stop: int) -> Iterator[Asked]:
    """This rank's share of the batches of steps start..stop-1.

    The batch of a step is the same for any number of ranks, which share it in their order.
    """
    for step in range(start, stop):
        row = torch.arange(step * batch, (step + 1) * batch)
        epoch, position = local(row // n), local(row % n)
        index = torch.empty_like(position)
        for own in epoch.unique().tolist():
            chosen = epoch == own
            index[chosen] = shuffled(position[chosen], n, seed, own)
        yield Asked(epoch, index)


def evaluation_plan(n: int, batch: int) -> Iterator[Asked]:
    """This rank's share of 0..n-1 in order, in batches of one size: the last ones are filled up with image n-1."""
    steps = -(-n // batch)
    for index in torch.arange(steps * batch).clamp(max=n - 1).split(batch):
        own = local(index)
        yield Asked(torch.zeros_like(own), own)
