"""Sets of images: in memory, all of one size, or encoded, decoded when they are asked for."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from moco.data.formats.decode import UnreadableImageError, decode
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather_objects, world_size

log = logging.getLogger("moco")


class Reader(Protocol):
    """Where the bytes of encoded images come from: any image, at any time, from any process."""

    remote: bool
    """Whether reading an image by itself is slow, and a shard is better read through."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes:
        """The content of an image file. Raises OSError or UnreadableImageError if it cannot be had."""
        ...

    def name(self, position: int) -> str:
        """What a person would look for it by: a path, a member of a shard."""
        ...


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
class Encoded:
    """Images as encoded bytes.

    Attributes:
        reader: gives the bytes.
        labels: int64 (n,), or None.
        max_bad: the share of unreadable images above which UserError is raised.
        rows: int64 (n,), which of the reader's images these are; None: all of them, in order.
        bad: the positions of the images found unreadable.
        told: what was said of them.
    """

    reader: Reader
    labels: Tensor | None = None
    max_bad: float = 0.01
    rows: Tensor | None = None
    bad: set[int] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.reader) if self.rows is None else len(self.rows)

    def _row(self, position: int) -> int:
        return position if self.rows is None else int(self.rows[position])

    def name(self, position: int) -> str:
        return self.reader.name(self._row(position))

    def read(self, position: int) -> bytes:
        """The encoded image at `position`. Raises UnreadableImageError."""
        row = self._row(position)
        try:
            return self.reader.read(row)
        except OSError as error:
            raise UnreadableImageError(f"{self.reader.name(row)}: {error.strerror or error}") from error

    def decode(self, position: int) -> Tensor:
        """The image at `position`, uint8 (3, height, width). Raises UnreadableImageError."""
        return decode(self.read(position), self.name(position))

    def decode_near(self, position: int, errors: dict[int, str]) -> tuple[int, Tensor]:
        """The image at `position`, or the next one that can be read, and where it was.

        What could not be read is added to `errors`, by position. Raises UserError after 100 that cannot be read.
        """
        actual, tries = position, min(len(self), 100)
        for _ in range(tries):
            try:
                return actual, self.decode(actual)
            except UnreadableImageError as error:
                errors[actual] = str(error)
                actual = (actual + 1) % len(self) if error.instead is None else error.instead
        raise UserError(f"{tries} images in a row cannot be read: {errors[position]}")

    def report(self, errors: dict[int, str]) -> None:
        """Names each newly found unreadable image in the log, once. Raises UserError when there are too many."""
        for position, error in errors.items():
            if position not in self.bad:
                self.bad.add(position)
                if error not in self.told:  # a shard that cannot be read is many images, and one message
                    self.told.add(error)
                    log.warning("skipped an unreadable image (%d so far): %s", len(self.bad), error)
        if errors and len(self.bad) > self.max_bad * len(self):
            raise UserError(
                f"{len(self.bad)} of {len(self)} images cannot be read, more than --max-bad {self.max_bad:g}: "
                f"the last is {error}"
            )

    def agree_on_unreadable(self) -> None:
        """Counts over all ranks what each found unreadable. Raises UserError, on all of them, if there are too many."""
        if world_size() == 1:
            return
        self.bad = set().union(*gather_objects(self.bad))
        if len(self.bad) > self.max_bad * len(self):
            error = UserError(
                f"{len(self.bad)} of {len(self)} images cannot be read, more than --max-bad {self.max_bad:g}"
            )
            error.agreed = True
            raise error

    def subset(self, index: Tensor) -> "Encoded":
        labels = None if self.labels is None else self.labels[index]
        rows = index if self.rows is None else self.rows[index]
        return Encoded(self.reader, labels, self.max_bad, rows)


ImageSet = InMemory | Encoded


def in_memory(encoded: Encoded, limit_mb: int) -> InMemory | None:
    """All the images decoded, if they are of one size and come to no more than `limit_mb`; else None.

    Unreadable images are left out.
    """
    images: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:
        # In pieces, so that a first image of another size, or a set too large, is noticed early.
        for start in range(0, len(encoded), 256):
            positions = range(start, min(start + 256, len(encoded)))
            for position, image in zip(positions, _try_decode(encoded, positions, pool), strict=True):
                if isinstance(image, UnreadableImageError):
                    errors[position] = str(image)
                    continue
                images[position] = image
                first = next(iter(images.values()))
                if image.shape != first.shape or len(encoded) * image.numel() > limit_mb * 2**20:
                    return None
    encoded.report(errors)
    if not images:
        raise UserError(f"none of {len(encoded)} images can be read: {errors[0]}")
    kept = torch.tensor(list(images))
    return InMemory(torch.stack(list(images.values())), None if encoded.labels is None else encoded.labels[kept])


def _try_decode(
    encoded: Encoded, positions: Iterable[int], pool: ThreadPoolExecutor
) -> Iterable[Tensor | UnreadableImageError]:
    def one(position: int) -> Tensor | UnreadableImageError:
        try:
            return encoded.decode(position)
        except UnreadableImageError as error:
            return error

    return pool.map(one, positions)
