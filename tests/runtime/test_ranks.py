"""Ranks fail together: what fails on any is printed once, by name, ends all with code 2, and leaves a checkpoint."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runs.folder import Run
from moco.runtime.ranks import _fresh
from tests.ranks import Rank, run_ranks

OPTIONS = (
    "--encoder tinyw0.25 --image-size 16 --batch-size 24 --bn-group 4 --dim 16 --queue-size 48 --epochs 3 --knn-k 5 "
    "--precision fp32 --device cpu --log-every 1 --knn-every 0 --warmup 0 --lr 0.05 --checkpoint-minutes 0 --workers 0"
)


@pytest.fixture(scope="module")
def images(random_npz) -> Path:
    return random_npz(96)


def command(images: Path, out: str = "run", more: str = "") -> str:
    return f"pretrain shapes-cpu --data npz:{images} {OPTIONS} --out {out} {more}"


def printed(ranks: list[Rank]) -> list[str]:
    """What all ranks printed as errors, line by line."""
    return [line for rank in ranks for line in rank.err.splitlines() if line.startswith(("moco:", "Traceback"))]


def last_step(run: Path) -> int:
    newest = newest_checkpoint(Run(run))
    assert newest is not None
    return read_checkpoint(newest)["step"]


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("sabotage", "lines"),
    [
        ("user_error", ["moco: rank 1: disk 7: cannot be read"]),
        slow("out_of_memory", ["moco: rank 1: CUDA out of memory: a smaller batch takes less"]),
        slow("bug", ["Traceback (most recent call last):", "moco: rank 1: KeyError: 'a plain bug'"]),
        slow("killed", ["moco: rank 1: was killed, or its machine lost: --resume auto continues the run"]),
        slow("main_killed", ["moco: rank 0: was killed, or its machine lost: --resume auto continues the run"]),
        slow("stuck", ["moco: rank 1: disk 7: cannot be read"]),
    ],
)
def test_what_fails_on_one_rank_ends_all(tmp_path, images, sabotage, lines):
    ranks = run_ranks(3, command(images), [tmp_path], sabotage)
    assert printed(ranks) == lines, ranks
    dead = {"killed": 1, "main_killed": 0}.get(sabotage)
    assert [rank.code for rank in ranks] == [-9 if number == dead else 2 for number in range(3)]
    assert 0 <= last_step(tmp_path / "run") <= 3


def patient(words: str, tmp_path: Path) -> list[Rank]:
    """Three ranks whose collectives end after a second, while the main rank works for longer."""
    began = time.monotonic()
    ranks = run_ranks(3, words, [tmp_path], program="tests.runtime.patient")
    assert time.monotonic() - began < 30
    return ranks


@pytest.mark.slow
def test_what_the_main_rank_does_alone_may_take_longer_than_a_collective(tmp_path):
    ranks = patient("works", tmp_path)
    assert [rank.code for rank in ranks] == [0, 0, 0], ranks


@pytest.mark.parametrize("words", ["error", slow("bug"), slow("killed"), slow("other")])
def test_what_fails_while_ranks_wait_for_the_main_rank_ends_all(tmp_path, words):
    ranks = patient(words, tmp_path)
    assert [rank.code == 0 for rank in ranks] == [False] * 3, ranks
    assert ranks[0].code == -9 if words == "killed" else ranks[0].code in (1, 2)
    assert all("RankError" in rank.err or not rank.err for rank in ranks[1:]), ranks


def test_a_restart_finds_nothing_of_the_start_before_it_in_the_store():
    """torchrun's store outlives it; whoever read a rank's old address would wait for one that is gone."""
    store = dist.HashStore()
    store.set("token/1", "a token of a rank that was killed before it was answered")
    with ThreadPoolExecutor(3) as pool:
        for start in range(2):
            first, *others = pool.map(lambda own: _fresh(store, own, 3), (0, 1, 2))
            assert not first.check(["address"])
            first.set("address", str(start))
            assert [other.get("address") for other in others] == [str(start).encode()] * 2
