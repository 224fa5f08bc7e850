"""Work on a CPU by whole items, one a thread: each thread computes alone, and so waits for no other.

An operation that both cores share makes the faster one wait at its end, and small ones are not shared at all.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """function(item) of every item, in order, by as many threads as PyTorch would use, each with one thread of its own.

    With one thread, as in a worker process or within `each`, or one item, this thread does it. Raises what the function
    raises.
    """
    items, threads = list(items), torch.get_num_threads()
    if threads == 1 or len(items) < 2 or threading.current_thread().name.startswith(_NAME):
        return [function(item) for item in items]
    inference = torch.is_inference_mode_enabled()  # each thread has a mode of its own

    def called(item: Item) -> Result:
        with torch.inference_mode(inference):
            return function(item)

    return list(_pool(threads, os.getpid()).map(called, items))


def portions(length: int, at_most: int) -> list[slice]:
    """0..length-1 in slices for `each`: some for every thread, so that all end together, and of limited length."""
    step = max(1, min(at_most, -(-length // (4 * torch.get_num_threads()))))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it PyTorch and `each` use this thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_NAME = "moco-each"


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """The threads, started; of this process, as none survives a fork."""
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # PyTorch sets up a thread when it is first used there, which would undo what follows
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, _NAME, initializer=start)
    for _ in range(threads):
        pool.submit(bool)
    started.wait()
    # What a thread sets for itself is also the default of threads yet to start: that stays what it was.
    torch.set_num_threads(threads)
    return pool
