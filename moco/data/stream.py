"""Shards that are read from their beginning to their end, as remote ones are: in what order, and by whom.

An image of a remote shard costs a request, a shard read through costs one. So the shards of an epoch are shuffled and
dealt to lanes, each lane reads its shards one after another, and shuffles within blocks of images. A step takes the
same number of images from every lane. Lanes belong to the run, not to its ranks and workers, which share them: so the
order is a pure function of (seed, epoch) here too, and a resumed run opens each lane's shard where it stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import torch

from moco.contrast.collectives import rank, world_size
from moco.data.dataset import Encoded
from moco.data.formats.decode import UnreadableImageError
from moco.data.order import Asked, shuffled
from moco.data.sources.shards import Shards, UnreadableShardError
from moco.runtime.errors import UserError

LANES = 64
"""What is shared by the ranks and their workers: a run has as many streams, and a rank at most as many workers as
streams."""
BLOCK = 256
"""Images of a lane that are shuffled together, and that wait in memory, encoded."""


class Lane:
    """One lane's endless row of images: its shards of epoch 0, then those of epoch 1, and so on.

    Args:
        starts: int64 (shards + 1,), the number of each shard's first image, and of all images.
        seed: of the run.
        lane, lanes: which of how many.
        block: images that are shuffled together.
    """

    def __init__(self, starts: list[int], seed: int, lane: int, lanes: int, block: int = BLOCK) -> None:
        self.starts, self.seed, self.lane, self.lanes, self.block = starts, seed, lane, lanes, block
        self.epoch, self.first = 0, 0  # the epoch last asked for, and its first position in the row
        self._deal()

    def _deal(self) -> None:
        """The shards of the epoch, and where each begins in the lane's part of it."""
        n = len(self.starts) - 1
        order = shuffled(torch.arange(n), n, self.seed, self.epoch, 0, 1)
        self.shards = order[self.lane :: self.lanes].tolist()
        sizes = [self.starts[shard + 1] - self.starts[shard] for shard in self.shards]
        self.bounds = torch.tensor([0, *sizes]).cumsum(dim=0)

    def at(self, start: int, count: int) -> tuple[list[int], list[int]]:
        """The epochs and the images of positions start .. start + count - 1 of the row."""
        if start < self.first:
            self.epoch, self.first = 0, 0
            self._deal()
        epochs: list[int] = []
        images: list[int] = []
        while len(images) < count:
            length, offset = int(self.bounds[-1]), start + len(images) - self.first
            if offset >= length:
                self.epoch, self.first = self.epoch + 1, self.first + length
                self._deal()
                continue
            block = offset // self.block
            begin, end = block * self.block, min((block + 1) * self.block, length)
            inside = torch.arange(offset - begin, min(end - begin, offset - begin + count - len(images)))
            places = begin + shuffled(inside, end - begin, self.seed, self.epoch, self.lane + 1, block + 2)
            shard = torch.searchsorted(self.bounds, places, right=True) - 1
            firsts = torch.tensor([self.starts[own] for own in self.shards])
            images += (firsts[shard] + places - self.bounds[shard]).tolist()
            epochs += [self.epoch] * len(inside)
        return epochs, images


@dataclass(eq=False)
class _Cursor:
    """A shard that is being read."""

    images: Iterator[tuple[int, bytes]]
    next: int = 0


class StreamReader:
    """A `Reader` of images that are asked for in the order of lanes: shards are streams, read ahead as far as needed.

    What is asked for out of order, such as a replacement of an unreadable image, is read by itself.
    """

    remote = True

    def __init__(self, shards: Shards, block: int = BLOCK) -> None:
        self.shards, self.block = shards, block
        # Lanes need not be in the same epoch: one may begin a shard that another has not finished.
        self._open: dict[int, list[_Cursor]] = {}
        self._waiting: dict[int, bytes] = {}
        self._dead: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, position: int) -> str:
        return self.shards.name(position)

    def read(self, position: int) -> bytes:
        """The image's bytes. Raises OSError or UnreadableImageError; if the whole shard cannot be read, it names
        the same place in the next one instead."""
        if position in self._waiting:
            return self._waiting.pop(position)
        shard, offset = self.shards.where(position)
        if shard in self._dead:
            raise self._beyond(shard, position)
        cursors = self._open.setdefault(shard, [])
        cursor = max((one for one in cursors if one.next <= offset), key=lambda one: one.next, default=None)
        if cursor is None:
            if cursors and offset >= self.block:
                return self.shards.read(position)
            cursor = _Cursor(self.shards.stream(shard))
            cursors.append(cursor)
        try:
            return self._advance(shard, cursor, offset)
        except UnreadableShardError as error:
            self._dead[shard] = str(error)
            raise self._beyond(shard, position) from error

    def _advance(self, shard: int, cursor: "_Cursor", offset: int) -> bytes:
        """Reads on until the image; those on the way wait, as long as they are in reach of a block."""
        first = int(self.shards.starts[shard])
        for number, data in cursor.images:
            cursor.next = number + 1
            if number == offset:
                if cursor.next == self.shards.counts[shard]:
                    self._open[shard].remove(cursor)
                return data
            self._waiting[first + number] = data
            if number >= self.block:
                self._waiting.pop(first + number - self.block, None)
        raise UnreadableShardError(f"{self.shards.urls[shard]}: ends after {cursor.next} images")

    def _beyond(self, shard: int, position: int) -> UnreadableImageError:
        count = int(self.shards.counts[shard])
        error = UnreadableImageError(self._dead[shard])
        error.instead = (position + count) % len(self)
        return error


class Streamed:
    """How this rank trains on a set of remote shards.

    Args:
        images: the set, whose reader is `Shards`.
        batch: images a step, over all ranks.
        seed: of the run.
        workers: processes that read.
        lanes: how many there are at most; fewer if the batch does not divide, or there are fewer shards.

    Raises UserError if the ranks cannot share the lanes evenly.

    Attributes:
        parts: in how many parts a batch is asked for, one for each worker that has lanes.
    """

    def __init__(self, images: Encoded, batch: int, seed: int, workers: int, lanes: int = LANES) -> None:
        shards = images.reader
        assert isinstance(shards, Shards)
        self.images = replace(images, reader=StreamReader(shards))
        starts = [*shards.starts.tolist(), len(shards)]
        lanes = next(n for n in range(min(lanes, len(starts) - 1), 0, -1) if batch % n == 0)
        if lanes % world_size():
            raise UserError(
                f"{world_size()} ranks cannot share {lanes} shard streams evenly: choose --shard-streams that divides "
                f"--batch-size {batch}, is a multiple of the ranks, and no more than the {len(starts) - 1} shards"
            )
        own = lanes // world_size()
        self.each = batch // lanes
        self.lanes = [Lane(starts, seed, rank() * own + i, lanes) for i in range(own)]
        self.parts = max(1, min(workers, own))

    def plan(self, start: int, stop: int) -> Iterator[Asked]:
        """What is asked for in steps start..stop-1, in `parts` parts a step."""
        bounds = [len(self.lanes) * part // self.parts for part in range(self.parts + 1)]
        for step in range(start, stop):
            taken = [lane.at(step * self.each, self.each) for lane in self.lanes]
            for first, last in pairwise(bounds):
                yield Asked(*(torch.tensor(list(chain(*field))) for field in zip(*taken[first:last], strict=True)))
