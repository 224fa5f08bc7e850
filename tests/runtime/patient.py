"""Run by test_ranks.py on each rank: collectives end after a second, and the main rank works for longer."""

import functools
import time
from datetime import timedelta

import torch.distributed as dist

from moco.runtime.errors import UserError
from moco.runtime.ranks import is_main, joined, on_main, rank
from tests.sabotage import killed_now

SECONDS = 1.5


def long_work() -> int:
    time.sleep(SECONDS)
    return 7


def main(words: list[str]) -> None:
    """Words: which of them happens on the main rank while the others wait, or on rank 1 while the main rank works."""
    dist.init_process_group = functools.partial(dist.init_process_group, timeout=timedelta(seconds=1))
    began = time.monotonic()
    with joined():
        match words[0]:
            case "works":
                assert on_main(long_work) == 7
                if is_main():
                    long_work()
            case "error":
                on_main(lambda: long_work() and _raise(UserError("disk 7: is full")))
            case "bug":
                on_main(lambda: _raise(KeyError("a plain bug")))
            case "killed":
                on_main(killed_now)
            case "other":
                if rank() == 1:
                    raise UserError("disk 7: cannot be read")
                on_main(lambda: time.sleep(60))
    assert time.monotonic() - began < 20


def _raise(error: Exception) -> None:
    raise error
