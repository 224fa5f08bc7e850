"""What the commands share: a device, the ranks, and what is printed once."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.text import Text

from moco.runs.config import Compute
from moco.runtime.device import Device
from moco.runtime.errors import UserError, require_all
from moco.runtime.files import write_whole
from moco.runtime.progress import track
from moco.runtime.ranks import is_main, joined
from moco.training.build import device_of

Item = TypeVar("Item")
console = Console(highlight=False)
TABLES = (".csv", ".json")


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


def check_file(option: str, path: Path | None, suffixes: Iterable[str], overwrite: bool) -> None:
    """Raises UserError unless a file can be written there: its ending, its folder, what is there already."""
    if path is None:
        return
    known = ", ".join(suffixes)
    rules = [
        (path.suffix.lower() in suffixes, f"{option} {path}: ends with none of {known}"),
        (path.absolute().parent.is_dir(), f"{option} {path}: no such folder: {path.parent}"),
        (overwrite or not path.exists(), f"{option} {path}: exists already: --overwrite replaces it"),
        (os.access(path.absolute().parent, os.W_OK), f"{option} {path}: its folder may not be written to"),
    ]
    require_all(rules)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same columns as .json or .csv, whole or not at all."""
    text = io.StringIO()
    if path.suffix.lower() == ".json":
        json.dump(rows, text, indent=2)
    else:
        out = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    content = text.getvalue().encode(errors="surrogateescape")
    write_whole(path, lambda file: file.write(content))


def print_on_main(what: Any) -> None:
    """Prints on the main rank. Text is not wrapped and has no markup, as it may hold a command or a path."""
    if is_main():
        console.print(Text(what) if isinstance(what, str) else what, soft_wrap=isinstance(what, str))


def progress(title: str) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """Wraps the iteration over the pieces of some work in a progress bar."""
    return lambda pieces: track(pieces, title)
