"""What may go wrong on one rank of several: each is called in its process before the program starts."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from moco.runtime import signals
from moco.runtime.errors import UserError
from moco.runtime.signals import Signals
from moco.training import Pretraining, build, loop

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


def killed_now() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(rank: int) -> None:
    if rank == 1:
        _at_step(killed_now)


def main_killed(rank: int) -> None:
    if rank == 0:
        _at_step(killed_now)


def stopped(rank: int) -> None:
    """SIGTERM to rank 1 alone; ranks agree after every step, so that where the run stops depends on no clock."""
    signals._SECONDS = 0.0
    if rank == 1:
        _at_step(lambda: os.kill(os.getpid(), signal.SIGTERM))


def group_stopped(rank: int) -> None:
    """SIGTERM to all processes of a rank, its workers too, as torchrun sends it."""
    os.setsid()
    _at_step(lambda: os.killpg(0, signal.SIGTERM))


def stopped_all(rank: int) -> None:
    """Stops at a step that does not depend on when ranks agree."""

    class Stops(Signals):
        def agree(self, due: bool) -> tuple[int, bool]:
            steps.append(due)
            return (signal.SIGTERM if len(steps) == STEP else 0), False

    steps: list[bool] = []
    loop.Signals = Stops  # type: ignore[misc]


def dropout(rank: int) -> None:
    """The encoder drops out features at random."""
    plain = build.build_encoder

    def dropping(*options: Any) -> torch.nn.Module:
        encoder = plain(*options)
        encoder.register_forward_hook(lambda module, _, output: F.dropout(output, 0.3, module.training))
        return encoder

    build.build_encoder = dropping


def other_weights(rank: int) -> None:
    """The encoder of rank 1 starts with other weights."""
    plain = build.build_encoder

    def perturbed(*options: Any) -> torch.nn.Module:
        encoder = plain(*options)
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(rank)
        return encoder

    build.build_encoder = perturbed


def stuck(rank: int) -> None:
    """Rank 1 fails while rank 0 waits for what nothing interrupts."""
    if rank == 0:
        _at_step(lambda: time.sleep(60), STEP)
    else:
        user_error(rank)


SABOTAGES: dict[str, Callable[[int], None]] = {
    act.__name__: act
    for act in (
        user_error,
        bug,
        out_of_memory,
        killed,
        main_killed,
        stopped,
        group_stopped,
        stopped_all,
        dropout,
        other_weights,
        stuck,
    )
}
