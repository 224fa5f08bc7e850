"""An image a thread: work on many images, which no operation of PyTorch divides among the cores in a useful way."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

_pools: dict[int, ThreadPoolExecutor] = {}
"""By their number of threads."""
os.register_at_fork(after_in_child=_pools.clear)  # a child has none of its parent's threads


def in_threads(work: Callable[[int, int], object], count: int, together: int) -> None:
    """Calls work(first, last) for portions of `together` of `count` items, in as many threads as PyTorch takes.

    The work should release the interpreter's lock, as PyTorch's operations and kernels of Numba do. Raises what it
    raises.
    """
    threads, starts = torch.get_num_threads(), range(0, count, together)
    if threads == 1 or len(starts) <= 1:
        for start in starts:
            work(start, min(start + together, count))
        return
    if threads not in _pools:
        _pools[threads] = _pool(threads)
    for _ in _pools[threads].map(lambda start: work(start, min(start + together, count)), starts):
        pass


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch takes one core alone; elsewhere it keeps its number."""
    together, pool = Barrier(threads), ThreadPoolExecutor(threads, "moco")

    def alone() -> None:
        torch.get_num_threads()  # a thread takes PyTorch's number when it first asks for it, and so not later
        torch.set_num_threads(1)
        together.wait()  # so that every thread has one of these calls

    for started in [pool.submit(alone) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)  # of threads that are started later
    return pool
