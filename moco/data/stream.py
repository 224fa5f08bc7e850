"""Shards that are read through, as remote ones are: a rank reads each of its streams once, a little ahead.

Threads of the rank's own process read, as they only wait for the network; the bytes go with the indices to whichever
worker decodes them. So the bytes that a rank reads do not depend on its workers.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from moco.data.dataset import Content
from moco.data.formats.decode import UnreadableImageError
from moco.data.order import BLOCK, Indices, StreamOrder
from moco.data.sources.shards import Shards, UnreadableShardError

STREAMS = 64
"""Of a run, shared by its ranks."""
AHEAD = 32
"""Images that a stream reads at a time, beyond the block from which it gives."""
_THREADS = 32
Key = tuple[int, int]
"""Epoch and number of an image."""


class ShardReader:
    """Reads images of shards in ascending places, a shard as one stream.

    Args:
        shards: the shards.
        dead: of each shard that was found unreadable, from which image on, and what is wrong; shared by readers.
        depth: how many dead shards in a row led here.
    """

    def __init__(self, shards: Shards, dead: dict[int, tuple[int, str]], depth: int = 0) -> None:
        self.shards, self.dead, self.depth = shards, dead, depth
        self._shard, self._next = -1, 0
        self._images: Iterator[tuple[int, bytes]] = iter(())
        self._instead: ShardReader | None = None

    def read(self, image: int) -> Content:
        """The image's bytes. In place of one of a dead shard: the error, which names the same place in the next shard,
        and the bytes of that."""
        shard, number = self.shards.where(image)
        if shard not in self.dead or number < self.dead[shard][0]:
            try:
                return {image: self._advance(shard, number)}
            except UnreadableShardError as error:
                self.dead[shard] = number, str(error)
                self._shard = -1
        unreadable = UnreadableImageError(self.dead[shard][1])
        unreadable.instead = instead = (image + int(self.shards.counts[shard])) % len(self.shards)
        if self.depth + 1 >= min(len(self.shards.urls), 100):
            return {image: unreadable}
        self._instead = self._instead or ShardReader(self.shards, self.dead, self.depth + 1)
        return {image: unreadable} | self._instead.read(instead)

    def _advance(self, shard: int, number: int) -> bytes:
        if shard != self._shard or not self._next <= number <= self._next + BLOCK:
            self._shard, self._next, self._images = shard, number, self.shards.stream(shard, number)
        for found, data in self._images:
            self._next = found + 1
            if found == number:
                return data
        raise UnreadableShardError(f"{self.shards.urls[shard]}: ends before image {number}")


class StreamReader:
    """One stream's images, read ahead: at most a block and 2 * `AHEAD` of them wait in memory.

    Args:
        reader: of the shards; used by one thread at a time.
        order: which images this rank takes, in the order of shards.
        block: images that are shuffled together.
        pool: threads that read.
    """

    def __init__(self, reader: ShardReader, order: Iterator[Key], block: int, pool: ThreadPoolExecutor) -> None:
        self.reader, self.order, self.block, self.pool = reader, order, block, pool
        self.waiting: dict[Key, Content] = {}
        self._ahead = self._submit()

    def take(self, key: Key) -> Content:
        """What was read for an image, which is then forgotten. Raises what reading raised."""
        if self._ahead.done() and len(self.waiting) <= self.block:
            self._collect()
        while key not in self.waiting:
            self._collect()
        return self.waiting.pop(key)

    def _collect(self) -> None:
        self.waiting |= self._ahead.result()
        self._ahead = self._submit()

    def _submit(self) -> Future[dict[Key, Content]]:
        keys = list(islice(self.order, max(AHEAD, self.block - len(self.waiting))))
        return self.pool.submit(lambda: {key: self.reader.read(key[1]) for key in keys})


def read_streams(
    shards: Shards, order: StreamOrder, start: int, stop: int
) -> Generator[tuple[Indices, Content], None, None]:
    """This rank's share of the batches of steps start..stop-1, with the bytes of their images.

    Raises UserError where a package is missing that reads them.
    """
    pool = ThreadPoolExecutor(min(_THREADS, len(set(order.own))), "shard-stream")
    dead: dict[int, tuple[int, str]] = {}
    try:
        streams = {
            stream: StreamReader(ShardReader(shards, dead), order.reading(stream, start, stop), order.block, pool)
            for stream in dict.fromkeys(order.own)
        }
        for indices in order.plan(start, stop):
            content: Content = {}
            for stream, *key in zip(order.own, indices.epoch.tolist(), indices.images.tolist(), strict=True):
                content |= streams[stream].take((key[0], key[1]))
            yield indices, content
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
