"""Sets of images: in memory, all of one size, or in files."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from moco.errors import UserError

log = logging.getLogger("moco")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass
class InMemory:
    """Images of one size: uint8 (n, 3, height, width), and their labels, int64 (n,), or None."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.images.to(device), self.labels)

    def subset(self, index: Tensor) -> "InMemory":
        return InMemory(self.images[index], None if self.labels is None else self.labels[index])


@dataclass
class OnDisk:
    """Images in files, read when they are asked for.

    Attributes:
        paths: the files.
        labels: int64 (n,), or None.
        max_bad: the share of unreadable files above which UserError is raised.
        bad: the positions of the files found unreadable.
    """

    paths: Sequence[Path]
    labels: Tensor | None = None
    max_bad: float = 0.01
    bad: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.paths)

    def read_near(self, position: int, errors: dict[int, str]) -> tuple[int, Tensor]:
        """The image at `position`, or the next one that can be read, and where it was.

        What could not be read is added to `errors`, by position.
        """
        tries = min(len(self), 100)
        for offset in range(tries):
            actual = (position + offset) % len(self)
            try:
                return actual, read_image(self.paths[actual])
            except UnreadableImageError as error:
                errors[actual] = str(error)
        raise UserError(f"{tries} files in a row cannot be read as images: {errors[position]}")

    def report(self, errors: dict[int, str]) -> None:
        """Names each newly found unreadable file in the log, once. Raises UserError when there are too many."""
        for position, error in errors.items():
            if position not in self.bad:
                self.bad.add(position)
                log.warning("skipped an unreadable image (%d so far): %s", len(self.bad), error)
        if errors and len(self.bad) > self.max_bad * len(self):
            raise UserError(
                f"{len(self.bad)} of {len(self)} files cannot be read as images, more than --max-bad {self.max_bad:g}: "
                f"the last is {error}"
            )

    def subset(self, index: Tensor) -> "OnDisk":
        labels = None if self.labels is None else self.labels[index]
        return OnDisk([self.paths[i] for i in index.tolist()], labels, self.max_bad)


ImageSet = InMemory | OnDisk


class UnreadableImageError(Exception):
    """A file that is not an image, or a damaged one: the message is its path and what is wrong."""


def read_image(path: Path) -> Tensor:
    """The file as uint8 (3, height, width) in RGB, turned as its EXIF says. Raises UnreadableImageError."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UnreadableImageError(f"{path}: {type(error).__name__}: {error}".replace("\n", " ")) from error


def in_memory(files: OnDisk, limit_mb: int) -> InMemory | None:
    """All the files decoded, if they are of one size and come to no more than `limit_mb`; else None.

    Unreadable files are left out.
    """
    images: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:
        # In pieces, so that a first image of another size, or a set too large, is noticed early.
        for start in range(0, len(files), 256):
            for position, image in enumerate(pool.map(_try_read, files.paths[start : start + 256]), start):
                if isinstance(image, UnreadableImageError):
                    errors[position] = str(image)
                    continue
                images[position] = image
                first = next(iter(images.values()))
                if image.shape != first.shape or len(files) * image.numel() > limit_mb * 2**20:
                    return None
    files.report(errors)
    if not images:
        raise UserError(f"none of {len(files)} files can be read as an image: {errors[0]}")
    kept = torch.tensor(list(images))
    return InMemory(torch.stack(list(images.values())), None if files.labels is None else files.labels[kept])


def _try_read(path: Path) -> Tensor | UnreadableImageError:
    try:
        return read_image(path)
    except UnreadableImageError as error:
        return error
