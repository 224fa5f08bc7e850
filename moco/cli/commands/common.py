"""What the commands share: a device, the ranks, and what is printed once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.text import Text

from moco.runs.config import Compute
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.progress import track
from moco.runtime.ranks import is_main, joined
from moco.training.build import device_of

Item = TypeVar("Item")
console = Console(highlight=False)


@contextmanager
def computing(compute: Compute) -> Iterator[Device]:
    """The device, and the ranks joined, for as long as the command runs."""
    device = device_of(compute)
    with joined(device.device):
        try:
            yield device
        except torch.OutOfMemoryError as error:
            reason = str(error).partition(". ")[0]
            raise UserError(f"{device.device}: {reason}: a smaller batch takes less") from error


def say(what: Any) -> None:
    """Prints on the main rank; text as it is, in one line however long, as it may be a command or a path."""
    if is_main():
        console.print(Text(what) if isinstance(what, str) else what, soft_wrap=isinstance(what, str))


def progress(title: str) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """Wraps the iteration over the pieces of some work in a progress bar."""
    return lambda pieces: track(pieces, title)
