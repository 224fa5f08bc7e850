"""How a run is stopped: by a signal, or by its deadline."""

import math
import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

from moco.contrast.collectives import world_size

_SECONDS, _MOST_STEPS = 1.0, 1000
"""About how long ranks go without agreeing on signals, and the most steps."""


class Stopped(Exception):  # noqa: N818  # not an error: the run was stopped, and can be continued
    """The run was stopped by a signal; its checkpoint is written."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.signal_number, self.step = signal_number, step


class Signals:
    """SIGINT and SIGTERM end the run after the current step; a second one ends it at once. So does the deadline."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = math.inf if deadline is None else deadline
        self._period, self._waited, self._last = 1, 0, time.monotonic()

    def __enter__(self) -> "Signals":
        self._number = 0
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        signal.signal(number, self._before[signal.Signals(number)])

    def agree(self, due: bool) -> tuple[int, bool]:
        """Called after every step: the signal that any rank received, 0 if none, and whether any is `due`.

        With several ranks the answer comes about once a second, as it takes a message; between, it is (0, False).
        """
        if time.monotonic() > self._deadline:
            self._number = signal.SIGTERM
        if world_size() == 1:
            return self._number, due
        self._waited += 1
        if self._waited < self._period:
            return 0, False
        elapsed = time.monotonic() - self._last
        agreed = torch.tensor([float(self._number), float(due), elapsed], dtype=torch.float64)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        number, any_due, elapsed = agreed.tolist()
        # All ranks come to the same period, as they all have the longest time.
        self._period = max(1, min(_MOST_STEPS, round(self._period * _SECONDS / max(elapsed, 1e-3))))
        self._waited, self._last = 0, time.monotonic()
        return int(number), bool(any_due)


def ignore_signals(worker: int) -> None:
    """Of a DataLoader's worker: torchrun and terminals signal it too, and it serves until its run has stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
