"""Ranks that open remote shards together, from a real HTTP server."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.sources.http_server import Server
from tests.data.sources.test_remote import index_of, tar_of
from tests.ranks import on_ranks, run_ranks
from tests.training.test_ranks import OPTIONS, assert_close, recorded

pytest.importorskip("aiohttp")


@pytest.fixture
def server():
    one = Server()
    yield one
    one.close()


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(server):
    """Three shards of 32 images, with indices."""
    for number in range(3):
        tar = tar_of([png(32 * number + i) for i in range(32)], 32 * number)
        server.files |= {f"/{number}.tar": tar, f"/{number}.idx": index_of(tar)}
    return f"{server.url}/{{0..2}}.tar"


def test_each_index_is_read_once_by_one_of_two_ranks(server, shards, tmp_path):
    on_ranks(2, "tests.data.sources.open_on_ranks", shards, tmp_path)
    assert sorted(path for _, path, _ in server.requests) == ["/0.idx", "/1.idx", "/2.idx"]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == [0, 1] * 48


@pytest.mark.slow
def test_two_ranks_train_as_one(server, shards, tmp_path):
    words = f"pretrain cifar10-cpu --data shards:{shards} {OPTIONS} --knn-every 0 --shard-streams 3"
    for ranks in (1, 2):
        ended = run_ranks(ranks, f"{words} --out on-{ranks}", [tmp_path])
        assert [rank.code for rank in ended] == [0] * ranks, ended
    assert_close(recorded(tmp_path / "on-1"), recorded(tmp_path / "on-2"))


def test_shards_that_are_not_there_are_named_once_and_end_both_ranks(server, tmp_path):
    words = f"pretrain cifar10-cpu --data shards:{server.url}/{{0..2}}.tar {OPTIONS} --out run"
    ranks = run_ranks(2, words, [tmp_path])
    assert [rank.code for rank in ranks] == [2, 2], ranks
    (line,) = [line for rank in ranks for line in rank.err.splitlines() if line.startswith("moco: ")]
    assert server.url in line
    assert not (tmp_path / "run").exists()
