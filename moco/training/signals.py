"""How a run is told to stop: by a signal, or by its deadline."""

import math
import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

from moco.contrast.ranks import world_size


class Stopped(Exception):  # noqa: N818  # not an error: the run was told to stop, and can be continued
    """The run was told to stop by a signal; its checkpoint is written."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.signal_number, self.step = signal_number, step


class Signals:
    """SIGINT and SIGTERM end the run after the step in hand; a second one ends it at once. So does the deadline."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = math.inf if deadline is None else deadline

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
        """The signal that came to any rank, 0 if none, and whether a checkpoint is due on any: all act alike."""
        if time.monotonic() > self._deadline:
            self._number = signal.SIGTERM
        if world_size() == 1:
            return self._number, due
        both = torch.tensor([self._number, int(due)])
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        number, any_due = both.tolist()
        return number, bool(any_due)
