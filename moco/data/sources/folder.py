"""Images as files below a folder."""

import logging
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from moco.data.dataset import Encoded
from moco.runtime.errors import UserError

log = logging.getLogger("moco")
SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Files:
    """A `Reader` of files.

    The paths lie end to end in one string of bytes: of a list of millions, every worker would come to have a copy, as
    counting references writes to each.
    """

    remote = False

    def __init__(self, paths: Iterable[str | Path]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._paths = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def read(self, position: int) -> bytes:
        return Path(self.name(position)).read_bytes()

    def name(self, position: int) -> str:
        return os.fsdecode(self._paths[self._ends[position] : self._ends[position + 1]])

    def version(self, position: int) -> str:
        return file_version(self.name(position))


def file_version(path: str) -> str:
    """Size and time of modification of a file, "" where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 a Path for each would take longer than the call
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def list_folder(path: Path, max_bad: float, classes: list[str] | None) -> tuple[Encoded, list[str] | None]:
    """The images below a folder, in the order of their paths. Labels are the folders at the top, if all lie in one.

    Raises UserError if there are none, or if there is a class that is not one of `classes`.
    """
    paths = sorted(find_images(path))
    if not paths:
        raise UserError(f"{path}: no images here ({', '.join(SUFFIXES)})")
    start = len(os.path.join(path, ""))  # noqa: PTH118 Path drops the slash
    tops = [file[start:].partition("/") for file in paths]
    if not all(slash for _, slash, _ in tops):
        return Encoded(Files(paths), None, max_bad), None
    names = [top for top, _, _ in tops]
    known = classes or sorted(set(names))
    if unknown := set(names) - set(known):
        raise UserError(f"{path}: classes that are not among the training images': {', '.join(sorted(unknown)[:3])}")
    if len(known) < 2:
        return Encoded(Files(paths), None, max_bad), None
    number = {name: i for i, name in enumerate(known)}
    return Encoded(Files(paths), torch.tensor([number[name] for name in names]), max_bad), known


def find_images(root: Path) -> Iterable[str]:
    """The paths of the files below `root` that are named like images, in no order.

    Links to folders are followed, and every folder is entered once, so links may go round in circles; links to nowhere
    are given, as something was meant to be there. What is hidden is left out: thumbnails, and the `._` files of macOS.
    A folder that may not be read is named in the log.
    """
    folders, entered = deque([str(root)]), set[tuple[int, int]]()
    while folders:
        folder = folders.popleft()
        try:
            status = os.stat(folder)  # noqa: PTH116 a Path for each would take longer than the call
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if _is_folder(entry):
                        # Links last, so that an image has its own path rather than that of a link.
                        (folders.append if entry.is_symlink() else folders.appendleft)(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES) and _may_be_read(entry):
                        yield entry.path
        except OSError as error:
            log.warning("skipped a folder that cannot be read: %s: %s", folder, error.strerror)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Not a pipe or a device, which would be waited for."""
    return (entry.is_symlink() and not os.path.exists(entry.path)) or entry.is_file()  # noqa: PTH110
