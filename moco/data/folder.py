"""Images as files below a folder."""

from collections.abc import Sequence
from pathlib import Path

import torch

from moco.data.images import Encoded
from moco.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class Files:
    """A `Reader` of files."""

    remote = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> bytes:
        return self.paths[position].read_bytes()

    def name(self, position: int) -> str:
        return str(self.paths[position])


def list_folder(path: Path, max_bad: float, classes: list[str] | None) -> tuple[Encoded, list[str] | None]:
    """The images below a folder, in the order of their paths. Labels are the folders at the top, if all lie in one."""
    paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not paths:
        raise UserError(f"{path}: no images here ({', '.join(sorted(SUFFIXES))})")
    tops = [file.relative_to(path).parts for file in paths]
    if any(len(parts) == 1 for parts in tops):
        return Encoded(Files(paths), None, max_bad), None
    names = [parts[0] for parts in tops]
    known = classes or sorted(set(names))
    if unknown := set(names) - set(known):
        raise UserError(f"{path}: classes that the training images lack: {', '.join(sorted(unknown)[:3])}")
    if len(known) < 2:
        return Encoded(Files(paths), None, max_bad), None
    number = {name: i for i, name in enumerate(known)}
    return Encoded(Files(paths), torch.tensor([number[name] for name in names]), max_bad), known
