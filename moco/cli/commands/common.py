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
def together() -> Iterator[None]:
    """The ranks joined, while the command runs; running out of memory is an error in one line."""
    with joined():
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(f"{str(error).partition('. ')[0]}: a smaller batch takes less") from error


@contextmanager
def computing(compute: Compute) -> Iterator[Device]:
    """The device, and the ranks joined, for as long as the command runs."""
    with together():
        yield device_of(compute)


def print_on_main(what: Any) -> None:
    """Prints on the main rank. Text is not wrapped and has no markup, as it may hold a command or a path."""
    if is_main():
        console.print(Text(what) if isinstance(what, str) else what, soft_wrap=isinstance(what, str))


def progress(title: str) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """Wraps the iteration over the pieces of some work in a progress bar."""
    return lambda pieces: track(pieces, title)
