"""Several ranks as one program: they start together, decide together, fail together.

The main rank decides and the others follow. What fails on any rank is reported once, with the rank's name, and ends all
of them with exit code 2; the same command starts a run or continues it, so torchrun and a batch system may restart it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from moco.contrast.collectives import average, gather, local, rank, world_size
from moco.runtime.errors import UserError

__all__ = [
    "RankError",
    "average",
    "gather",
    "gather_objects",
    "is_main",
    "joined",
    "local",
    "on_main",
    "rank",
    "world_size",
]

T = TypeVar("T")
_POLL = 0.5
"""Seconds between two looks for the failure of another rank."""
_KILLED = UserError("another rank was killed: the same command with --resume auto continues the run")
_GRACE = 10.0
"""Seconds that a rank has to leave by itself, after another one failed: it may be waiting for it on a GPU."""


class RankError(UserError):
    """What ended all ranks, to be printed by this one alone."""

    of_rank = True


def is_main() -> bool:
    """Whether this rank decides, writes and prints."""
    return rank() == 0


def on_main(act: Callable[[], T]) -> T:
    """What the main rank's `act()` returns, on every rank; the others wait for it.

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


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the ranks that torchrun started, if it did, for as long as the block lasts.

    CPU tensors are sent by gloo, GPU tensors by NCCL. If the block raises on one rank, that rank prints the error, and
    the others end quietly. Raises RankError, or SystemExit with code 2 on the ranks that have nothing to print.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    board = _Board()
    try:
        yield
        dist.barrier()  # none leaves while another still works
    except (SystemExit, KeyboardInterrupt):
        raise
    except UserError as error:
        raise board.report(error) from error
    except Exception as error:
        if board.failure(wait=5.0):  # it is but the end of the connection to the rank that failed
            raise SystemExit(2) from None
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            raise board.report(_KILLED) from None
        board.report(UserError(f"{type(error).__name__}: {error}"))
        raise
    else:
        dist.destroy_process_group()
    finally:
        board.close()


class _Board:
    """Where a rank that fails leaves word for the others: a few keys in the ranks' store, which a thread looks at."""

    def __init__(self) -> None:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives a restart
        self.store = PrefixStore(f"moco/{attempt}", _get_default_store())
        self.closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def report(self, error: UserError) -> BaseException:
        """What to raise: the error, with the rank's name, on the rank that reports first; else a quiet exit."""
        if error.agreed:
            return RankError(str(error)) if is_main() else SystemExit(2)
        try:
            first = self.store.add("failures", 1) == 1
            if first:
                self.store.set("failed", str(rank()))
        except RuntimeError:  # the store went with the rank that kept it
            first = False
        return RankError(f"rank {rank()}: {error}") if first else SystemExit(2)

    def failure(self, wait: float = 0.0) -> bool:
        """Whether a rank has failed; one that is failing now is waited for."""
        until = time.monotonic() + wait
        while True:
            try:
                if self.store.check(["failed"]):
                    return True
            except RuntimeError:
                return False
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)

    def _watch(self) -> None:
        while not self.closed.wait(_POLL):
            try:
                failed = self.store.check(["failed"])
            except RuntimeError:
                return
            if failed:
                if not self.closed.wait(_GRACE):
                    os._exit(2)  # this rank waits for one that is gone, in a kernel that nothing interrupts
                return

    def close(self) -> None:
        self.closed.set()
