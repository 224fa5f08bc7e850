"""Remote shards: lanes give every image once an epoch, to any number of ranks and workers, and resume at once."""

import io
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moco.data import Encoded, Loader, stream
from moco.data.formats.decode import UnreadableImageError
from moco.data.sources.shards import Shards, UnreadableShardError
from moco.data.stream import Lane, Streamed, StreamReader
from moco.runtime.errors import UserError
from moco.views import Views


def as_png(number):
    data = io.BytesIO()
    picture = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


class Fake(Shards):
    """Remote shards of so many images each; whose streams and single reads are counted, and some of which fail."""

    remote = True

    def __init__(self, counts, dead=(), content=None):
        self.counts = np.array(counts, np.int64)
        self.starts = np.cumsum([0, *counts])[:-1]
        self.urls = [f"s3://bucket/{i:03}.tar" for i in range(len(counts))]
        self.dead, self.content = set(dead), content or (lambda position: b"%d" % position)
        self.opened, self.streamed, self.single = [], 0, []

    def __len__(self):
        return int(self.counts.sum())

    def where(self, position):
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return shard, position - int(self.starts[shard])

    def stream(self, shard):
        self.opened.append(shard)
        if shard in self.dead:
            raise UnreadableShardError(f"{self.urls[shard]}: gone")
        for number in range(int(self.counts[shard])):
            self.streamed += 1
            yield number, self.content(int(self.starts[shard]) + number)

    def read(self, position):
        self.single.append(position)
        if self.where(position)[0] in self.dead:
            raise UnreadableImageError("gone")
        return self.content(position)

    def name(self, position):
        return f"{self.urls[self.where(position)[0]]}: {position}"


def ranks(monkeypatch, rank, count):
    monkeypatch.setattr(stream, "rank", lambda: rank)
    monkeypatch.setattr(stream, "world_size", lambda: count)


def steps_of(plan, parts):
    """The (epoch, image) pairs of every step, in order."""
    asked = [list(zip(part.epoch.tolist(), part.images.tolist(), strict=True)) for part in plan]
    return [list(chain(*asked[i : i + parts])) for i in range(0, len(asked), parts)]


counts_of_shards = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(counts=counts_of_shards, lanes=st.integers(1, 4), block=st.integers(1, 20), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_lanes_give_every_image_once_in_every_epoch(counts, lanes, block, seed):
    lanes = min(lanes, len(counts))
    starts = [0, *np.cumsum(counts).tolist()]
    seen = Counter()
    for number in range(lanes):
        lane = Lane(starts, seed, number, lanes, block)
        for start in range(0, 4 * sum(counts), 29):
            seen.update(zip(*lane.at(start, 29), strict=True))
    assert max(seen.values()) == 1
    assert all((epoch, image) in seen for epoch in range(2) for image in range(sum(counts)))


@given(counts=counts_of_shards, start=st.integers(0, 300), back=st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_a_lane_is_a_pure_function_of_the_position(counts, start, back):
    starts = [0, *np.cumsum(counts).tolist()]
    lane = Lane(starts, 3, 0, 1, block=8)
    expected = lane.at(0, 320)
    for at in (start, back):
        assert lane.at(at, 20) == tuple(field[at : at + 20] for field in expected)


def test_epochs_have_other_orders_of_shards_and_of_images():
    lane = Lane([0, 50, 100, 150, 200], 0, 0, 1)
    orders = [lane.at(200 * epoch, 200)[1] for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(i // 50 for i in order[::50]) for order in orders}) > 1


@pytest.mark.parametrize("workers", [0, 1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_order_is_the_same_for_any_ranks_and_workers(monkeypatch, count, workers):
    counts = [20, 13, 40, 8, 25, 30, 9, 17]
    ranks(monkeypatch, 0, 1)
    alone = Streamed(Encoded(Fake(counts)), 16, 1, 0, lanes=8)
    whole = steps_of(alone.plan(0, 30), alone.parts)
    shares = []
    for rank in range(count):
        ranks(monkeypatch, rank, count)
        own = Streamed(Encoded(Fake(counts)), 16, 1, workers, lanes=8)
        assert own.parts <= max(1, workers)
        shares.append(steps_of(own.plan(0, 30), own.parts))
    assert [list(chain(*step)) for step in zip(*shares, strict=True)] == whole
    resumed = Streamed(Encoded(Fake(counts)), 16, 1, workers, lanes=8)
    assert steps_of(resumed.plan(17, 30), resumed.parts) == shares[-1][17:]


def test_there_are_no_more_lanes_than_shards_and_they_divide_the_batch(monkeypatch):
    ranks(monkeypatch, 0, 1)
    assert len(Streamed(Encoded(Fake([5] * 100)), 256, 0, 2).lanes) == 64
    assert len(Streamed(Encoded(Fake([5] * 7)), 256, 0, 2).lanes) == 4
    assert len(Streamed(Encoded(Fake([5] * 100)), 30, 0, 2).lanes) == 30
    ranks(monkeypatch, 0, 3)
    with pytest.raises(UserError, match=r"3 ranks cannot share 64 shard streams .*--shard-streams"):
        Streamed(Encoded(Fake([5] * 100)), 192, 0, 2)


def read_all(shards, steps, start=0):
    """Reads in the order of the plan, and checks what came."""
    own = Streamed(Encoded(shards), 8, 0, 0, lanes=4)
    reader = own.images.reader
    for asked in own.plan(start, steps):
        for image in asked.images.tolist():
            assert reader.read(image) == b"%d" % image
    return reader


def test_a_shard_is_read_through_once_an_epoch():
    shards = Fake([25] * 40)
    read_all(shards, 3 * 1000 // 8)
    assert shards.streamed == 3 * 1000
    assert len(shards.opened) == 3 * 40
    assert not shards.single


def test_lanes_may_be_in_different_epochs():
    shards = Fake([50, 40, 60, 50, 45, 55])
    read_all(shards, 300 * 4 // 8)


def test_few_images_wait():
    shards = Fake([3000, 3000, 2500, 2500, 4000])
    own = Streamed(Encoded(shards), 8, 0, 0, lanes=4)
    reader = own.images.reader
    for asked in own.plan(0, 1500):
        for image in asked.images.tolist():
            reader.read(image)
        assert len(reader._waiting) <= 4 * 2 * stream.BLOCK


def test_resuming_reads_from_the_lanes_shards():
    shards = Fake([50, 40, 60, 50, 45, 55])
    read_all(shards, 110, start=100)
    assert not shards.single
    assert shards.streamed < 4 * 60 * 2


def test_what_is_asked_for_out_of_order_is_read_by_itself():
    shards = Fake([10])
    reader = StreamReader(shards, block=2)
    assert reader.read(7) == b"7"
    assert reader.read(6) == b"6"
    assert reader.read(3) == b"3"
    assert shards.single == [3]


def test_a_shard_that_ends_early_is_unreadable_from_there():
    shards = Fake([10, 10])
    reader = StreamReader(shards)
    shards.stream = lambda shard: iter([(0, b"0"), (1, b"1")])
    assert reader.read(1) == b"1"
    with pytest.raises(UnreadableImageError, match=r"000\.tar: ends after 2 images") as caught:
        reader.read(5)
    assert caught.value.instead == 15


def test_the_images_of_a_dead_shard_are_replaced_and_named_once(logged):
    shards = Fake([12, 12, 12, 12], dead=[2], content=as_png)
    images = Encoded(shards, max_bad=0.3)
    seen = []
    for batch in Loader(images, Views("v2", 16, 0), torch.device("cpu")).training(8, 0, 0, 6, lanes=4):
        seen += batch.images.tolist()
        assert batch.views[0].shape == (8, 3, 16, 16)
    assert len(seen) == 48
    assert not set(seen) & set(range(24, 36))
    (record,) = logged.records
    assert "002.tar: gone" in record.getMessage()


def test_too_many_images_in_dead_shards_stop_the_run(logged):
    images = Encoded(Fake([12, 12, 12, 12], dead=[2], content=as_png), max_bad=0.01)
    with pytest.raises(UserError, match=r"of 48 images cannot be read, more than --max-bad 0\.01.*002\.tar: gone"):
        list(Loader(images, Views("v2", 16, 0), torch.device("cpu")).training(8, 0, 0, 6, lanes=4))


def test_batches_are_the_same_for_any_number_of_workers():
    def made(workers):
        images = Encoded(Fake([12, 9, 14, 12], content=as_png))
        return list(Loader(images, Views("v2", 16, 0), torch.device("cpu"), workers).training(8, 0, 3, 9, lanes=4))

    alone = made(0)
    for workers in (1, 3):
        for one, other in zip(alone, made(workers), strict=True):
            assert torch.equal(one.images, other.images)
            assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
