"""What a billion images on 64 ranks need, by simulation: the program's own order and reader, over made-up shards.

    python -m bench.scale [--images 1000000000] [--per-shard 10000] [--ranks 64] [--batch 1024] [--steps 300]

Counts memory, requests and what is read before the first batch, checks that no image comes twice, lets a shard fail.
"""

import argparse
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from moco.data import stream
from moco.data.dataset import Encoded
from moco.data.sources.shards import Shards, UnreadableShardError


class MadeUp(Shards):
    """As many shards as one likes, each image a byte, each way of reading counted."""

    remote = True

    def __init__(self, images: int, per_shard: int, dead: int | None = None) -> None:
        self.counts = np.full(images // per_shard, per_shard, np.int64)
        self.starts = np.concatenate(([0], np.cumsum(self.counts)))[:-1]
        self.dead, self.opened, self.streamed, self.single = dead, 0, 0, 0

    @property
    def urls(self) -> list[str]:  # type: ignore[override]
        return [""] * len(self.counts)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def where(self, position: int) -> tuple[int, int]:
        return divmod(position, int(self.counts[0]))

    def stream(self, shard: int) -> Iterator[tuple[int, bytes]]:
        self.opened += 1
        if shard == self.dead:
            raise UnreadableShardError("made up")
        for number in range(int(self.counts[shard])):
            self.streamed += 1
            yield number, b"x"

    def read(self, position: int) -> bytes:
        self.single += 1
        return b"x"

    def name(self, position: int) -> str:
        return str(position)


def rank_of(rank: int, ranks: int, shards: Shards, batch: int, streams: int) -> stream.Streamed:
    """What one rank would set up."""
    with (
        mock.patch.object(stream, "rank", return_value=rank),
        mock.patch.object(stream, "world_size", return_value=ranks),
    ):
        return stream.Streamed(Encoded(shards), batch, seed=0, workers=8, lanes=streams)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--per-shard", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--shard-streams", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--bytes", type=int, default=25_000, help="mean size of an image, for the totals")
    parser.add_argument("--rate", type=float, default=3000, help="images/s a rank, for the totals")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    tracemalloc.start()
    shards = MadeUp(options.images, options.per_shard)
    before = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    own = rank_of(0, options.ranks, shards, options.batch, options.shard_streams)
    opening = time.perf_counter() - start
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    reader = own.images.reader
    start = time.perf_counter()
    seen: list[int] = []
    waiting = 0
    first_read = 0
    for step, asked in enumerate(own.plan(0, options.steps)):
        for image in asked.images.tolist():
            reader.read(image)
        seen += asked.images.tolist()
        waiting = max(waiting, len(reader._waiting))  # type: ignore[union-attr, attr-defined]
        if step + 1 == own.parts:
            first_read = shards.streamed
    a_step = (time.perf_counter() - start) / options.steps
    assert len(set(seen)) == len(seen), "an image came twice"

    start = time.perf_counter()
    resumed = next(rank_of(0, options.ranks, shards, options.batch, options.shard_streams).plan(10**6, 10**6 + 1))
    resuming = time.perf_counter() - start

    dead, lost = int(own.lanes[0].shards[0]), 0
    broken = MadeUp(options.images, options.per_shard, dead)
    own_broken = rank_of(0, options.ranks, broken, options.batch, options.shard_streams)
    replaced: dict[int, str] = {}
    with mock.patch("moco.data.dataset.decode", return_value=torch.zeros(3, 1, 1, dtype=torch.uint8)):
        for asked in own_broken.plan(0, 50):
            for image in asked.images.tolist():
                own_broken.images.readable_near(image, replaced)
    lost = len(replaced)

    streams = len(own.lanes)
    total_rate = options.rate * options.ranks
    results = {
        "shards": len(shards.counts),
        "shard streams of a rank": streams,
        "order in memory, MB a rank": held / 1e6,
        "images waiting, at most, a rank": waiting,
        "images waiting, MB a rank": waiting * options.bytes / 1e6,
        "setting up the order, s": opening,
        "plan and reader of a step, ms": 1e3 * a_step,
        "images read before the first batch, a rank": first_read,
        "MB read before the first batch, a rank": first_read * options.bytes / 1e6,
        "continuing at step 1,000,000, s": resuming,
        "shards opened a second, all ranks": total_rate / options.per_shard,
        "5 MB range requests a second, all ranks": total_rate * options.bytes / 5e6,
        "MB/s a rank": options.rate * options.bytes / 1e6,
        "one request an image would be, requests/s": total_rate,
        "a dead shard, images replaced in 50 steps of the rank that has it": lost,
        "requests for them": broken.single,
    }
    table = Table(
        title=f"{options.images:,} images, {options.ranks} ranks, batch {options.batch}", title_justify="left"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in results.items():
        table.add_row(name, f"{value:,.3g}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    assert len(resumed.images) > 0
    if options.out:
        options.out.write_text(
            json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, **results}, indent=2)
        )


if __name__ == "__main__":
    main()
