"""Several ranks as one program: they start together, decide together, fail together.

The main rank decides and the others follow. What fails on any rank is reported once, with the rank's name, and ends all
of them with exit code 2; the same command starts a run or continues it, so torchrun and a batch system may restart it.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from moco.contrast.collectives import average, gather, local, rank, world_size
from moco.runtime.errors import RankError, UserError

__all__ = [
    "average",
    "gather",
    "gather_objects",
    "is_main",
    "joined",
    "local",
    "mean_over_ranks",
    "on_main",
    "rank",
    "world_size",
]

T = TypeVar("T")
_JOIN = 300.0
"""Seconds that the main rank waits for the others to start."""
_POLL, _ANSWER, _GRACE = 0.25, 3.0, 5.0
"""Seconds: how often a rank checks whether another failed; how long a rank that fails waits until all others know; how
long they then have to leave by themselves, before they are ended: one may wait on a GPU for a rank that is gone."""
_board: "_Board | None" = None
"""Of the ranks that are joined."""


def is_main() -> bool:
    """Whether this rank decides, writes and prints."""
    return rank() == 0


def on_main(act: Callable[[], T]) -> T:
    """What the main rank's `act()` returns, on every rank; the others wait for it, however long it takes.

    The value is sent by pickle, so it may be tensors on the CPU or plain data. Raises on every rank the UserError that
    `act` raises.
    """
    if world_size() == 1:
        return act()
    outcome: list[object] = [None, None]
    if is_main():
        try:
            outcome[0] = act()
        except UserError as error:
            outcome[1] = error
    if _board is not None:
        _board.await_main()
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[1], UserError):
        outcome[1].agreed = True
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank; sent by pickle, as of `on_main`."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def mean_over_ranks(count: int | Tensor, like: Tensor) -> Tensor:
    """How many there are on a rank, on average, of the dtype and on the device of `like`; above 0.

    A sum that each rank divides by it has the mean over everything as its mean over ranks.
    """
    mean = torch.as_tensor(count).to(like, copy=True)
    average([mean])
    return mean.clamp(min=1e-6)


@contextmanager
def joined() -> Iterator[None]:
    """Joins the ranks that torchrun started, if it did, for as long as the block lasts.

    CPU tensors are sent by gloo, those of an accelerator by its own library (NCCL). Whatever the block raises on one
    rank ends all of them: by RankError on the rank that prints it, by SystemExit with code 2 on the others.

    PyTorch ends a collective for which a rank waits half an hour, as that of a machine that is lost. So ranks do not
    wait in one for what the main rank does alone, which may take longer.
    """
    global _board
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    # The store is ours, as those who fail leave word in it.
    try:
        store, own, ranks = next(rendezvous("env://"))
        store = _fresh(store, own, ranks)
        dist.init_process_group(_backend(), store=store, rank=own, world_size=ranks)
    except (ValueError, RuntimeError) as error:
        raise RankError(f"rank {os.environ['RANK']}: cannot join the others: {_first_line(error)}") from error
    _board = board = _Board(store)
    try:
        yield
        board.await_main()
        gather_objects(None)  # none leaves while another still works
    except Exception as error:
        raise board.failed(error) from error
    finally:
        _board = None
        board.close()
    dist.destroy_process_group()


def _fresh(store: Store, own: int, ranks: int) -> Store:
    """The part of the store that belongs to this start alone.

    torchrun's store outlives a restart, and holds the addresses of ranks that are gone. So the main rank picks a name,
    and each other rank requests it by a token of its own, which no earlier start can have answered. Raises RuntimeError
    if some do not come.
    """
    token, until = uuid4().hex, time.monotonic() + _JOIN
    if own:
        store.set(f"token/{own}", token)
        fresh = PrefixStore(store.get(token).decode(), store)
        fresh.set(f"came/{own}", "")
        return fresh
    fresh, others = PrefixStore(token, store), range(1, ranks)
    while missing := [other for other in others if not fresh.check([f"came/{other}"])]:
        for other in missing:
            if store.check([f"token/{other}"]):  # before a restart, or now
                store.set(store.get(f"token/{other}").decode(), token)
        if time.monotonic() > until:
            raise RuntimeError(f"rank {missing[0]} did not come")
        time.sleep(0.02)
    return fresh


def _backend() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "mps":
        return "gloo"
    return f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator.type)}"


class _Board:
    """Where a rank that fails notifies the others, and the main rank that it is done: a few keys in the ranks' store.

    A thread of each rank polls them, and answers, so that a rank which does not is known to be gone.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.meetings = store, 0
        self.known, self.closed = threading.Event(), threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def await_main(self) -> None:
        """Called on all ranks: the others return once the main rank has come, or raise if any fails before.

        They poll, as a wait within the store would keep it from the thread that notices failures.
        """
        self.meetings += 1
        if is_main():
            self.store.add("meetings", 1)
            return
        began = time.monotonic()
        while self.store.add("meetings", 0) < self.meetings:
            if self.known.is_set():
                raise dist.DistError("another rank failed")
            time.sleep(min(_POLL, max(1e-3, (time.monotonic() - began) / 10)))

    def failed(self, error: Exception) -> BaseException:
        """What to raise: the error, with the rank's name, on the rank that fails first; else a quiet exit.

        An error that all ranks raise is the main rank's to print.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's: this rank leaves anyway, but not in silence
        agreed = isinstance(error, UserError) and error.agreed
        first, missing = False, [0]
        try:
            self._answer()
            first = self.store.add("failed", 1) == 1
            if first:
                missing = self._unanswered()
                self.store.set("named", "")
            else:
                self.known.set()
                self.store.wait(["named"], timedelta(seconds=2 * _ANSWER))  # the store may go with this rank
        except RuntimeError:  # the store went with the main rank: if that was killed, the next one prints
            first = first or (rank() == 1 and not self.known.is_set())
        if not (is_main() if agreed else first):
            return SystemExit(2)
        if agreed:
            return RankError(str(error))
        if isinstance(error, UserError):
            return RankError(f"rank {rank()}: {error}")
        if not _is_of_connection(error):
            traceback.print_exception(error)
        elif missing:
            names = ", ".join(map(str, missing))
            return RankError(f"rank {names}: was killed, or its machine lost: --resume auto continues the run")
        return RankError(f"rank {rank()}: {type(error).__name__}: {_first_line(error)}")

    def _answer(self) -> None:
        self.store.set(f"here/{rank()}", "")

    def _unanswered(self) -> list[int]:
        """The ranks that do not answer."""
        missing, until = list(range(world_size())), time.monotonic() + _ANSWER
        while missing and time.monotonic() < until:
            time.sleep(_POLL / 5)
            missing = [other for other in missing if not self.store.check([f"here/{other}"])]
        return missing

    def _watch(self) -> None:
        while not self.closed.wait(_POLL):
            try:
                if not self.store.check(["failed"]):
                    continue
                self._answer()
                self.known.set()
            except RuntimeError:  # the main rank, which kept the store, is gone
                pass
            if not self.closed.wait(_GRACE):
                sys.stderr.flush()
                os._exit(2)
            return

    def close(self) -> None:
        self.closed.set()
        self.watcher.join(_ANSWER)


def _is_of_connection(error: Exception) -> bool:
    """Whether it is but the end of the connection to a rank that is gone. gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
