"""Remote shards: every image comes once an epoch for any shards, streams, ranks and workers, and is read once."""

import io
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moco.contrast import collectives
from moco.data import Encoded, Loader, open_source
from moco.data.formats.decode import UnreadableImageError
from moco.data.formats.tar import add
from moco.data.order import BLOCK, StreamOrder
from moco.data.sources.shards import Shards, UnreadableShardError
from moco.data.stream import AHEAD, ShardReader, StreamReader, read_streams
from moco.runtime.errors import UserError
from moco.views import Views

CPU = torch.device("cpu")


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
        self.opened, self.streamed, self.single = [], [], []

    def __len__(self):
        return int(self.counts.sum())

    def where(self, position):
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return shard, position - int(self.starts[shard])

    def stream(self, shard, first=0):
        self.opened.append(shard)
        if shard in self.dead:
            raise UnreadableShardError(f"{self.urls[shard]}: gone")
        for number in range(first, int(self.counts[shard])):
            self.streamed.append(int(self.starts[shard]) + number)
            yield number, self.content(int(self.starts[shard]) + number)

    def read(self, position):
        self.single.append(position)
        if self.where(position)[0] in self.dead:
            raise UnreadableImageError("gone")
        return self.content(position)

    def name(self, position):
        return f"{self.urls[self.where(position)[0]]}: {position}"


@pytest.fixture
def as_rank(monkeypatch):
    """`as_rank(1, 4)`: from now on this process plays rank 1 of 4."""

    def play(rank, count):
        monkeypatch.setattr(collectives, "rank", lambda: rank)
        monkeypatch.setattr(collectives, "world_size", lambda: count)

    return play


def pairs(indices):
    return list(zip(indices.epoch.tolist(), indices.images.tolist(), strict=True))


def steps_of(order, start, stop):
    """The (epoch, image) pairs of every step, in order."""
    return [pairs(indices) for indices in order.plan(start, stop)]


counts_of_shards = st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(sum)
many = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) >= 40)
"""So many images that a few hundred are not a hundred epochs."""


@given(
    counts=counts_of_shards,
    streams=st.integers(1, 20),
    batch=st.integers(1, 48),
    block=st.integers(1, 20),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=25, deadline=None)
def test_every_image_comes_once_in_every_epoch(counts, streams, batch, block, seed):
    n = sum(counts)
    endless = list(chain(*steps_of(StreamOrder(counts, batch, streams, seed, block), 0, -(-3 * n // batch))))
    for epoch in range(3):
        assert sorted(endless[epoch * n : (epoch + 1) * n]) == [(epoch, image) for image in range(n)]


@given(counts=many, streams=st.integers(1, 20), each=st.integers(1, 6), data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_order_is_the_same_for_any_ranks_and_any_start(counts, streams, each, data):
    batch, stop = 12 * each, 6
    whole = steps_of(StreamOrder(counts, batch, streams, 5, 8), 0, stop)
    start, count = data.draw(st.integers(0, stop)), data.draw(st.sampled_from([1, 2, 3, 4, 6]))
    shares = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(collectives, "world_size", lambda: count)
        for rank in range(count):
            patched.setattr(collectives, "rank", lambda rank=rank: rank)
            order = StreamOrder(counts, batch, streams, 5, 8)
            shares.append(steps_of(order, start, stop))
            read = chain(*(order.reading(stream, start, stop) for stream in set(order.own)))
            assert Counter(read) == Counter(chain(*shares[-1]))
    assert [list(chain(*step)) for step in zip(*shares, strict=True)] == whole[start:]


def test_a_hundred_shards_in_64_streams_leave_nothing_out():
    n = 100 * 1000
    seen = Counter(chain(*steps_of(StreamOrder([1000] * 100, 256, 64, 0), 0, -(-n // 256))))
    assert max(seen.values()) == 1
    assert sum(epoch == 0 for epoch, _ in seen) == n


def test_epochs_have_other_orders_of_shards_and_of_images():
    order = StreamOrder([50] * 4, 200, 1, 0)
    orders = [indices.images.tolist() for indices in order.plan(0, 3)]
    assert len({tuple(one) for one in orders}) == 3
    shards = [tuple(image // 50 for _, image in order.reading(0, step, step + 1))[::50] for step in range(3)]
    assert len(set(shards)) > 1


def test_a_batch_is_mixed_from_all_streams():
    order = StreamOrder([1000] * 100, 256, 64, 0)
    (indices,) = order.plan(0, 1)
    assert len((indices.images // 1000).unique()) > 50


def read_all(shards, steps, start=0, batch=8, streams=4):
    """Reads in the order of the plan, and checks what came."""
    order = StreamOrder(shards.counts, batch, streams, 0)
    for indices, content in read_streams(shards, order, start, steps):
        assert content == {image: b"%d" % image for image in indices.images.tolist()}


def test_each_image_is_read_once_an_epoch():
    shards = Fake([25] * 40)
    read_all(shards, 3 * 1000 // 8)
    assert Counter(shards.streamed) == dict.fromkeys(range(1000), 3)
    assert len(shards.opened) <= 3 * (40 + 4)
    assert not shards.single


def test_a_batch_of_many_epochs_is_read():
    read_all(Fake([3, 2]), 6, batch=16, streams=3)


@pytest.mark.parametrize("streams", [1, 3, 5, 64])
def test_ranks_that_share_streams_read_what_they_need(as_rank, streams):
    found = []
    for rank in range(4):
        as_rank(rank, 4)
        order = StreamOrder([25] * 10, 20, streams, 0)
        found += chain(*(pairs(indices) for indices, _ in read_streams(Fake([25] * 10), order, 0, 25)))
    assert Counter(found) == dict.fromkeys(((epoch, image) for epoch in range(2) for image in range(250)), 1)


def test_few_images_wait():
    shards = Fake([3000, 3000, 2500, 2500, 4000])
    order = StreamOrder(shards.counts, 8, 2, 0)
    with ThreadPoolExecutor(1) as pool:
        reader = StreamReader(ShardReader(shards, {}), order.reading(0, 0, 5000), BLOCK, pool)
        for indices in order.plan(0, 5000):
            for stream, key in zip(order.own, pairs(indices), strict=True):
                if stream == 0:
                    reader.take(key)
            assert len(reader.waiting) + len(reader._ahead.result()) <= BLOCK + 2 * AHEAD
    assert not reader.waiting
    assert 4 * 5000 <= len(shards.streamed) <= 4 * 5000 + 3 * BLOCK


def test_nothing_is_read_that_no_step_takes():
    shards = Fake([3000, 3000])
    read_all(shards, 503, start=500)
    assert len(shards.streamed) <= 4 * BLOCK


def test_an_error_of_a_reading_thread_is_raised():
    shards = Fake([50, 50])
    shards.stream = lambda shard, first=0: (_ for _ in ()).throw(UserError("s3://: needs a package"))
    with pytest.raises(UserError, match="needs a package"):
        read_all(shards, 3)


def test_a_shard_that_ends_early_is_unreadable_from_there():
    shards = Fake([10, 10])
    whole = shards.stream
    shards.stream = lambda shard, first=0: iter([(0, b"0"), (1, b"1")][first:]) if shard == 0 else whole(shard, first)
    reader = ShardReader(shards, {})
    for _ in range(2):
        assert reader.read(1) == {1: b"1"}
        content = reader.read(5)
        assert str(content[5]) == "s3://bucket/000.tar: ends before image 5"
        assert content[5].instead == 15
        assert content[15] == b"15"
    assert reader.read(6)[16] == b"16"


def test_all_shards_dead_is_no_endless_search():
    content = ShardReader(Fake([5, 5, 5], dead=[0, 1, 2]), {}).read(1)
    assert sorted(content) == [1, 6, 11]
    assert all(isinstance(error, UnreadableImageError) for error in content.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_images_of_a_dead_shard_are_replaced_and_named_once(logged, workers):
    shards = Fake([12, 12, 12, 12], dead=[2], content=as_png)
    images = Encoded(shards, max_bad=0.3)
    seen = []
    for batch in Loader(images, Views("v2", 16, 0), CPU, workers).training(8, 0, 0, 6, streams=4):
        seen += batch.images.tolist()
        assert batch.views[0].shape == (8, 3, 16, 16)
    assert Counter(seen) == {image: 2 if image >= 36 else 1 for image in range(48) if image not in range(24, 36)}
    (record,) = logged.records
    assert "002.tar: gone" in record.getMessage()
    assert not shards.single


def test_too_many_images_in_dead_shards_stop_the_run(logged):
    images = Encoded(Fake([12, 12, 12, 12], dead=[2], content=as_png), max_bad=0.01)
    with pytest.raises(UserError, match=r"of 48 images cannot be read, more than --max-bad 0\.01.*002\.tar: gone"):
        list(Loader(images, Views("v2", 16, 0), CPU).training(8, 0, 0, 6, streams=4))


def test_a_damaged_image_is_replaced_by_the_next_one(logged):
    shards = Fake([20, 20], content=lambda position: b"no image" if position == 7 else as_png(position))
    batches = Loader(Encoded(shards, max_bad=0.5), Views("v2", 16, 0), CPU).training(8, 0, 0, 5, streams=3)
    assert Counter(chain(*(batch.images.tolist() for batch in batches))) == {
        image: 2 if image == 8 else 1 for image in range(40) if image != 7
    }
    assert set(shards.single) <= {8}


def test_batches_are_the_same_for_any_number_of_workers():
    def made(workers):
        images = Encoded(Fake([12, 9, 14, 12], content=as_png))
        return list(Loader(images, Views("v2", 16, 0), CPU, workers).training(8, 0, 3, 9, streams=4))

    alone = made(0)
    for workers in (1, 3):
        for one, other in zip(alone, made(workers), strict=True):
            assert torch.equal(one.images, other.images)
            assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 8])
def test_a_rank_reads_its_bytes_once_whatever_its_workers(workers):
    shards = Fake([30, 30], content=as_png)
    batches = Loader(Encoded(shards), Views("v2", 16, 0), CPU, workers).training(8, 0, 0, 30, streams=1)
    assert sum(len(batch.images) for batch in batches) == 240
    assert Counter(shards.streamed) == dict.fromkeys(range(60), 4)
    assert not shards.single


@pytest.mark.parametrize(("streams", "workers", "count"), [(1, 2, 1), (5, 0, 2), (64, 1, 2), (3, 2, 3)])
def test_real_tars_through_the_loader(as_rank, streams, workers, count):
    sizes, memory = [7, 1, 12, 5, 11], fsspec.filesystem("memory")
    first = 0
    for shard, size in enumerate(sizes):
        with memory.open(f"/streamed/{shard:03}.tar", "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(first, first + size):
                add(archive, f"{number:03}.png", as_png(number))
        first += size
    images = open_source("shards:memory://streamed/{000..004}.tar", cache_mb=0).train
    seen = Counter()
    for rank in range(count):
        as_rank(rank, count)
        for batch in Loader(images, Views("v2", 16, 0), CPU, workers).training(12, 0, 0, 6, streams=streams):
            seen.update(batch.images.tolist())
    assert seen == dict.fromkeys(range(36), 2)
