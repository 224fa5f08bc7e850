"""What a billion images on 64 ranks need, by simulation: the program's own order and reader, over made-up shards.

    python -m bench.scale [--images 1000000000] [--per-shard 10000] [--ranks 64] [--batch 1024] [--steps 300]

Counts memory and requests, checks that no image comes twice, lets a shard fail.
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

from moco.contrast import collectives
from moco.data.dataset import Encoded
from moco.data.order import Indices, StreamOrder
from moco.data.sources.shards import Shards, UnreadableShardError
from moco.data.stream import AHEAD, read_streams


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

    def stream(self, shard: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        self.opened += 1
        if shard == self.dead:
            raise UnreadableShardError("made up")
        for number in range(first, int(self.counts[shard])):
            self.streamed += 1
            yield number, b"x"

    def read(self, position: int) -> bytes:
        self.single += 1
        return b"x"

    def name(self, position: int) -> str:
        return str(position)


def first_rank(shards: Shards, options: argparse.Namespace) -> StreamOrder:
    """The order as rank 0 has it."""
    with mock.patch.object(collectives, "world_size", return_value=options.ranks):
        return StreamOrder(torch.from_numpy(shards.counts), options.batch, options.shard_streams, seed=0)


def first_batch(order: StreamOrder, step: int) -> tuple[Indices, float]:
    """The indices of a step, and the seconds until they are known."""
    start = time.perf_counter()
    return next(order.plan(step, step + 1)), time.perf_counter() - start


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
    order = first_rank(shards, options)
    tensors = [order.counts, order.firsts, *order._epoch(0)]
    held = tracemalloc.get_traced_memory()[0] - before + sum(tensor.nbytes for tensor in tensors)
    tracemalloc.stop()
    _, seconds = first_batch(first_rank(shards, options), 0)
    _, resuming = first_batch(first_rank(shards, options), 10**6)
    streams = len(set(order.own))

    start = time.perf_counter()
    seen: list[int] = []
    for indices, _ in read_streams(shards, order, 0, options.steps):
        seen += indices.images.tolist()
    a_step = (time.perf_counter() - start) / options.steps
    assert len(set(seen)) == len(seen), "an image came twice"
    waiting = streams * (order.block + 2 * AHEAD)  # as `StreamReader` states; tests count it

    dead = shards.where(next(order.plan(0, 1)).images[0].item())[0]
    broken = MadeUp(options.images, options.per_shard, dead)
    replaced: dict[int, str] = {}
    with mock.patch("moco.data.dataset.decode", return_value=torch.zeros(3, 1, 1, dtype=torch.uint8)):
        for indices, content in read_streams(broken, order, 0, 50):
            images = Encoded(broken).with_content(content)
            for image in indices.images.tolist():
                images.readable_near(image, replaced)
    lost = len(replaced)

    total_rate = options.rate * options.ranks
    results = {
        "shards": len(shards.counts),
        "shard streams of a rank": streams,
        "order in memory, MB a rank": held / 1e6,
        "images waiting, at most, a rank": waiting,
        "images waiting, MB a rank": waiting * options.bytes / 1e6,
        "order of the first batch, s": seconds,
        "plan and reader of a step, ms": 1e3 * a_step,
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
    if options.out:
        options.out.write_text(
            json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, **results}, indent=2)
        )


if __name__ == "__main__":
    main()
