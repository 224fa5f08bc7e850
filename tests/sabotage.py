"""What may go wrong on one rank of several: each is called in its process before the program starts."""

import os
import signal
import time
from collections.abc import Callable

import torch

from moco.runtime.errors import UserError
from moco.training import Pretraining

STEP = 4


def _at_step(act: Callable[[], object], step: int = STEP) -> None:
    update = Pretraining.update

    def watched(self: Pretraining, *inputs: torch.Tensor) -> None:
        if self.step + 1 == step:
            act()
        update(self, *inputs)

    Pretraining.update = watched  # type: ignore[method-assign]


def _raises(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def user_error(rank: int) -> None:
    if rank == 1:
        _at_step(_raises(UserError("disk 7: cannot be read")))


def bug(rank: int) -> None:
    if rank == 1:
        _at_step(_raises(KeyError("a plain bug")))


def out_of_memory(rank: int) -> None:
    if rank == 1:
        _at_step(_raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More words")))


def killed(rank: int) -> None:
    if rank == 1:
        _at_step(lambda: os.kill(os.getpid(), signal.SIGKILL))


def main_killed(rank: int) -> None:
    if rank == 0:
        _at_step(lambda: os.kill(os.getpid(), signal.SIGKILL))


def stopped(rank: int) -> None:
    """SIGTERM to rank 1 alone."""
    if rank == 1:
        _at_step(lambda: os.kill(os.getpid(), signal.SIGTERM))


def stuck(rank: int) -> None:
    """Rank 1 fails while rank 0 waits for what nothing interrupts."""
    if rank == 0:
        _at_step(lambda: time.sleep(60), STEP)
    else:
        user_error(rank)


SABOTAGES = {act.__name__: act for act in (user_error, bug, out_of_memory, killed, main_killed, stopped, stuck)}
