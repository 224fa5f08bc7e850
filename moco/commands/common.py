"""What the commands share: a device, the ranks, and what is printed once."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.text import Text

from moco.config import Compute
from moco.contrast.ranks import rank, world_size
from moco.device import Device, choose_device, start_ranks, stop_ranks
from moco.errors import UserError

Item = TypeVar("Item")
console = Console(highlight=False)


@contextmanager
def computing(compute: Compute) -> Iterator[Device]:
    """The device, and the ranks joined as long as the command runs."""
    device = choose_device(compute)
    start_ranks(device.device)
    try:
        yield device
        if world_size() > 1:
            dist.barrier()  # none leaves while another still works
    except torch.OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        raise UserError(f"{device.device}: {said}: a smaller batch takes less") from error
    finally:
        stop_ranks()


def say(what: Any) -> None:
    """Prints on the main rank; text as it is, in one line however long, as it may be a command or a path."""
    if rank() == 0:
        console.print(Text(what) if isinstance(what, str) else what, soft_wrap=isinstance(what, str))


def progress(what: str) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """A bar over the pieces of some work, on the main rank's terminal; elsewhere nothing."""
    quiet = rank() != 0 or not sys.stderr.isatty()
    return lambda pieces: track(pieces, escape(what), console=Console(stderr=True), disable=quiet)
