"""In what order images come: pure functions of (seed, epoch), so a run's position is one number, the step.

The images of all epochs stand in one endless row, and a step takes the next batch of it: a batch may begin in one epoch
and end in the next, and in every epoch every image comes once.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from moco.contrast.collectives import local
from moco.views.counter_rng import philox


class Indices(NamedTuple):
    """One rank's share of a batch."""

    epoch: Tensor
    """int64 (n,), on the CPU: the epoch of each image."""
    images: Tensor
    """int64 (n,), on the CPU: their numbers in the set."""


Plan = Iterable[Indices]
"""The images of a run, batch by batch."""

_ROUNDS = 8
_PLANNED_TOGETHER = 2**14
"""Images: of few, most of the time goes into starting operations."""


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


def training_plan(n: int, batch: int, seed: int, start: int, stop: int) -> Iterator[Indices]:
    """This rank's share of the batches of steps start..stop-1.

    The batch of a step is the same for any number of ranks, which share it in their order.
    """
    together = max(1, _PLANNED_TOGETHER // batch)
    for first in range(start, stop, together):
        row = torch.arange(first * batch, min(first + together, stop) * batch).view(-1, batch)
        row = local(row.T).T.contiguous()  # of each step this rank's share
        epoch, position = row // n, row % n
        index = torch.empty_like(position)
        for own in epoch.unique().tolist():
            chosen = epoch == own
            index[chosen] = shuffled(position[chosen], n, seed, own)
        yield from map(Indices, epoch, index)


def evaluation_plan(n: int, batch: int) -> Iterator[Indices]:
    """This rank's share of 0..n-1 in order, in batches of one size: the last ones are filled up with image n-1."""
    steps = -(-n // batch)
    for index in torch.arange(steps * batch).clamp(max=n - 1).split(batch):
        own = local(index)
        yield Indices(torch.zeros_like(own), own)


BLOCK = 256
"""Images of a shard stream that are shuffled together, and that wait in memory, encoded."""


class _Epoch(NamedTuple):
    """How the streams share the images of one epoch."""

    before: Tensor
    """int64 (streams,), how many images each stream has given in all epochs before."""
    bounds: Tensor
    """int64 (streams + 1,), where in the row of this epoch's images each stream begins, and the last one ends."""
    shards: Tensor
    """int64 (shards,), in the order of the row."""
    ends: Tensor
    """int64 (shards,), where in the row each of them ends."""


class StreamOrder:
    """The order of images in shards that are read through, as remote ones are: one request each.

    The shards of an epoch are shuffled, which gives one row of its images. Each stream reads a stretch of the row
    from its beginning to its end, and shuffles within blocks of images. The slots of a batch are assigned to the
    streams once for all steps; so how many images of an epoch a stream gives is a count of slots, the stretches of the
    row are as long as these counts, and every image comes once. Streams belong to the run: ranks share them as they
    share the batch.

    Args:
        counts: images of each shard.
        batch: images a step, over all ranks.
        streams: how many, at most; there are no more than places in a batch. Shards may be fewer.
        seed: of the run.
        block: images that are shuffled together.

    Attributes:
        own: the stream of each of this rank's places of a batch, ascending.
    """

    def __init__(self, counts: Sequence[int] | Tensor, batch: int, streams: int, seed: int, block: int = BLOCK) -> None:
        self.counts = torch.as_tensor(counts, dtype=torch.int64)
        self.firsts = self.counts.cumsum(dim=0) - self.counts
        self.n, self.batch, self.seed, self.block = int(self.counts.sum()), batch, seed, block
        streams = min(streams, batch)
        places = torch.arange(batch)
        self.own: list[int] = local(places * streams // batch).tolist()
        self._own_places = local(places)
        self._firsts = -(torch.arange(streams) * -batch // streams)  # of each stream, its first place in a batch
        self._width = torch.bincount(places * streams // batch, minlength=streams)  # and how many it has
        self._epoch = lru_cache(maxsize=2)(self._of_epoch)

    def plan(self, start: int, stop: int) -> Iterator[Indices]:
        """This rank's share of the batches of steps start..stop-1; together the same for any number of ranks."""
        streams = {stream: self._images(stream, start, stop) for stream in self.own}
        for _ in range(start, stop):
            epochs, images = zip(*(next(streams[stream]) for stream in self.own), strict=True)
            yield Indices(torch.tensor(epochs), torch.tensor(images))

    def reading(self, stream: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Epoch and number of the images that this rank takes from a stream in these steps, in the order of shards."""
        for epoch, places in self._blocks(stream, start, stop):
            for image in self._image(epoch, places.sort().values).tolist():
                yield epoch, image

    def _images(self, stream: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The same images in the order of batches."""
        for epoch, places in self._blocks(stream, start, stop):
            for image in self._image(epoch, places).tolist():
                yield epoch, image

    def _blocks(self, stream: int, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Block by block the epoch, and the places in its row of what this rank takes, in the order of batches."""
        first, width = int(self._firsts[stream]), int(self._width[stream])
        k, last = start * width, stop * width  # the stream's images are numbered from the run's beginning
        while k < last:
            epoch = (k // width * self.batch + first + k % width) // self.n
            shared = self._epoch(epoch)
            before, (begin, end) = int(shared.before[stream]), shared.bounds[stream : stream + 2].tolist()
            block = (k - before) // self.block
            offset = block * self.block
            length = min(self.block, end - begin - offset)
            places = shuffled(torch.arange(length), length, self.seed, epoch, stream + 1, block + 2)
            numbers = before + offset + torch.arange(length)
            own = torch.isin(first + numbers % width, self._own_places)
            yield epoch, (begin + offset + places)[own & (k <= numbers) & (numbers < last)]
            k = before + offset + length

    def _image(self, epoch: int, places: Tensor) -> Tensor:
        """The numbers of the images at some places of an epoch's row."""
        shared = self._epoch(epoch)
        shard = torch.searchsorted(shared.ends, places, right=True)
        own = shared.shards[shard]
        return self.firsts[own] + places - (shared.ends[shard] - self.counts[own])

    def _of_epoch(self, epoch: int) -> _Epoch:
        before, after = self._given(epoch * self.n), self._given((epoch + 1) * self.n)
        n = len(self.counts)
        shards = shuffled(torch.arange(n), n, self.seed, epoch, 0, 1)
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), (after - before).cumsum(dim=0)])
        return _Epoch(before, bounds, shards, self.counts[shards].cumsum(dim=0))

    def _given(self, images: int) -> Tensor:
        """How many of the first so many images of the run each stream gives: int64 (streams,)."""
        steps, rest = divmod(images, self.batch)
        return steps * self._width + (rest - self._firsts).clamp(min=0).minimum(self._width)
