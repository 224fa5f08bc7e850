"""What a task gives to the loop that trains it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from moco.runtime.device import Device

Read = Callable[[int, int], Any]
"""A training sample as tensors on the CPU, of (epoch, number of the image); in a worker process. Raises UserError."""


@dataclass
class Measured:
    """What an evaluation measured.

    Attributes:
        numbers: by metric, in percent, as metrics.jsonl and tables have them.
        write: writes what else there is (results.json, pictures) into the run's folder; on the main rank.
    """

    numbers: dict[str, float]
    write: Callable[[Path], None]


class Task(Protocol):
    """A network with new layers around an encoder, the data that it is trained on, and how it is evaluated.

    Attributes:
        model: the network; its `encoder` starts from given weights. `model.checkpointing` saves memory.
        images: how many training images there are.
        read: gives one of them; None of a task that makes whole batches.
        precise_bn: batches over which BN's statistics are computed anew before an evaluation.
        facts: what the network cannot be used without, such as its classes; plain values, kept in the checkpoint.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def images(self) -> int: ...

    @property
    def read(self) -> Read | None: ...

    @property
    def precise_bn(self) -> int: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def losses(self, samples: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
        """The losses by name, of this rank's share of a batch; the model is trained on their sum."""
        ...

    def evaluate(self, device: Device, workers: int | None) -> Measured:
        """Evaluates the model on the test images, which the ranks share; called on all of them."""
        ...


@runtime_checkable
class WholeBatches(Protocol):
    """A task that makes a batch at once, where that is faster than image by image."""

    def batches(self, start: int, stop: int, device: Device, workers: int | None) -> Iterator[Any]:
        """This rank's share of the batches of steps start .. stop-1, a pure function of (seed, step)."""
        ...


class Losses(nn.Module):
    """A task's losses as a module: forward takes the samples."""

    def __init__(self, task: Task, device: torch.device) -> None:
        super().__init__()
        self.model, self._losses, self._device = task.model, task.losses, device

    def forward(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        return self._losses(samples, self._device)
