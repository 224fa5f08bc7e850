"""Sets of images: one protocol, whether they are in memory, all of one size, or encoded."""

import hashlib
import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from moco.data.formats.decode import UnreadableImageError, decode
from moco.data.order import shuffled
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather_objects

log = logging.getLogger("moco")
_COPIED = 3 * 64 * 64
"""Values of an image up to which copying it costs less than handling it by itself."""


class Reader(Protocol):
    """Where the bytes of encoded images come from: any image, at any time, from any process."""

    @property
    def remote(self) -> bool:
        """Whether random access is slow, so that whole shards should be read sequentially."""
        ...

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes:
        """The content of an image file. Raises OSError or UnreadableImageError if it cannot be read."""
        ...

    def name(self, position: int) -> str:
        """The image's name in messages: a path, a member of a shard."""
        ...

    def version(self, position: int) -> str:
        """What changes where the image is replaced under its name, as far as it is known without reading it."""
        ...


Content = dict[int, bytes | UnreadableImageError]
"""Encoded images that were read already, or why they cannot be, by position."""


class ImageSet(Protocol):
    """A set of images, wherever they are: in memory, encoded, or at a URL; its users need not know which."""

    labels: Tensor | None
    """int64 (n,), or None."""

    @property
    def random_access(self) -> bool:
        """Whether any image can be read quickly. If not, shards are read sequentially, as streams, once an epoch."""
        ...

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """The image's name in messages."""
        ...

    def read(self, position: int) -> bytes | None:
        """The encoded image, or None where there are only pixels. Raises UnreadableImageError."""
        ...

    def pixels(self, position: int) -> Tensor:
        """The image, uint8 (3, height, width), on the CPU. Raises UnreadableImageError."""
        ...

    def subset(self, index: Tensor) -> "ImageSet":
        """The images at these positions, int64 (m,), in this order."""
        ...

    def sample(self, count: int) -> Tensor:
        """The positions of at most so many images, int64 (m,), at random; without random access, the first."""
        ...

    def to(self, device: torch.device) -> "ImageSet":
        """The same set, its pixels on the device if they are in memory."""
        ...

    def agree_on_unreadable(self, known: Collection[int] = ()) -> None:
        """Counts the unreadable images over all ranks; called on all of them. Raises UserError if too many.

        `known`: positions of some that were found before this process began.
        """
        ...

    def digest(self) -> str:
        """16 hexadecimal digits that change with the images: with pixels in memory, with names and versions of files.

        It takes a stat of each file, and reads none.
        """
        ...


@dataclass
class InMemory:
    """Images of one size: uint8 (n, 3, height, width), and their labels, int64 (n,), or None."""

    images: Tensor
    labels: Tensor | None = None
    random_access = True

    def __len__(self) -> int:
        return len(self.images)

    def name(self, position: int) -> str:
        return f"image {position}"

    def read(self, position: int) -> None:
        return None

    def pixels(self, position: int) -> Tensor:
        return self.images[position].cpu()

    def at(self, index: Tensor) -> Tensor | list[Tensor]:
        """The images at these positions, int64 (m,), on their device. Large ones are not copied on a CPU."""
        if self.images.device.type == "cpu" and self.images[0].numel() > _COPIED:
            return [self.images[position] for position in index.tolist()]
        return self.images[index.to(self.images.device, non_blocking=True)]

    def subset(self, index: Tensor) -> "InMemory":
        return InMemory(self.images[index], None if self.labels is None else self.labels[index])

    def sample(self, count: int) -> Tensor:
        return shuffled(torch.arange(min(count, len(self))), len(self), 0, 0)

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.images.to(device), self.labels)

    def agree_on_unreadable(self, known: Collection[int] = ()) -> None:
        pass

    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for some in self.images.split(1024):
            digest.update(some.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass
class Unreadable:
    """The images of a whole set that were found unreadable; its subsets share it.

    Attributes:
        total: how many images the whole set has.
        rows: which could not be read, by their numbers in the whole set.
        messages: what was logged of them.
    """

    total: int
    rows: set[int] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)


_reading = Lock()
"""Threads decode at the same time, but read one after the other: readers keep open files."""


@dataclass
class Encoded:
    """Images as encoded bytes, decoded when they are needed.

    Attributes:
        reader: gives the bytes.
        labels: int64 (n,), or None.
        max_bad: the share of unreadable images above which UserError is raised.
        rows: int64 (n,), which of the reader's images these are; None: all of them, in order.
        unreadable: those of the whole set, of which this may be a subset.
    """

    reader: Reader
    labels: Tensor | None = None
    max_bad: float = 0.01
    rows: Tensor | None = None
    unreadable: Unreadable = field(default_factory=lambda: Unreadable(0))

    def __post_init__(self) -> None:
        self.unreadable.total = self.unreadable.total or len(self)

    @property
    def random_access(self) -> bool:
        return not self.reader.remote

    def __len__(self) -> int:
        return len(self.reader) if self.rows is None else len(self.rows)

    def _row(self, position: int) -> int:
        return position if self.rows is None else int(self.rows[position])

    def name(self, position: int) -> str:
        return self.reader.name(self._row(position))

    def read(self, position: int) -> bytes:
        row = self._row(position)
        try:
            with _reading:
                return self.reader.read(row)
        except OSError as error:
            raise UnreadableImageError(f"{self.reader.name(row)}: {error.strerror or error}") from error

    def with_content(self, content: Content | None) -> "Encoded":
        """The same set, where some images were read already. Their positions are those of the reader."""
        return replace(self, reader=_ReadAlready(self.reader, content)) if content else self

    def pixels(self, position: int) -> Tensor:
        return decode(self.read(position), self.name(position))

    def readable_near(self, position: int, errors: dict[int, str]) -> tuple[int, Tensor]:
        """The image at `position`, or the next one that can be read, and where it was.

        What could not be read is added to `errors`, by position. Raises UserError after 100 that cannot be read.
        """
        actual, tries = position, min(len(self), 100)
        for _ in range(tries):
            try:
                return actual, self.pixels(actual)
            except UnreadableImageError as error:
                errors[actual] = str(error)
                actual = (actual + 1) % len(self) if error.instead is None else error.instead
        several = f"{tries} consecutive images cannot be read: " if tries > 1 else ""
        raise UserError(f"{several}{errors[position]}")

    def report(self, errors: dict[int, str]) -> None:
        """Names each newly found unreadable image in the log, once. Raises UserError when there are too many."""
        rows, messages = self.unreadable.rows, self.unreadable.messages
        for position, error in errors.items():
            if (row := self._row(position)) not in rows:
                rows.add(row)
                if error not in messages:  # a shard that cannot be read is many images, and one message
                    messages.add(error)
                    log.warning("skipped an unreadable image (%d so far): %s", len(rows), error)
        if errors and self._too_many():
            raise UserError(f"{self._count()}: the last is {error}")

    def agree_on_unreadable(self, known: Collection[int] = ()) -> None:
        self.unreadable.rows |= {self._row(position) for position in known}
        self.unreadable.rows |= set().union(*gather_objects(self.unreadable.rows))
        if self._too_many():
            error = UserError(self._count())
            error.agreed = True
            raise error

    def _too_many(self) -> bool:
        return len(self.unreadable.rows) > self.max_bad * self.unreadable.total

    def _count(self) -> str:
        found, total = len(self.unreadable.rows), self.unreadable.total
        return f"{found} of {total} images cannot be read, more than --max-bad {self.max_bad:g}"

    def subset(self, index: Tensor) -> "Encoded":
        labels = None if self.labels is None else self.labels[index]
        rows = index if self.rows is None else self.rows[index]
        return Encoded(self.reader, labels, self.max_bad, rows, self.unreadable)

    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for row in map(self._row, range(len(self))):
            digest.update(f"{self.reader.name(row)}\0{self.reader.version(row)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def sample(self, count: int) -> Tensor:
        first = torch.arange(min(count, len(self)))
        return shuffled(first, len(self), 0, 0) if self.random_access else first

    def to(self, device: torch.device) -> "Encoded":
        return self


@dataclass
class _ReadAlready:
    """A `Reader` of images some of which were read before."""

    reader: Reader
    content: Content

    @property
    def remote(self) -> bool:
        return self.reader.remote

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, position: int) -> str:
        return self.reader.name(position)

    def version(self, position: int) -> str:
        return self.reader.version(position)

    def read(self, position: int) -> bytes:
        found = self.content.get(position)
        if isinstance(found, UnreadableImageError):
            raise found
        return self.reader.read(position) if found is None else found


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
    # With the channels last, as decoders give them and a CPU resizes them four times as fast.
    pixels = torch.stack([image.permute(1, 2, 0) for image in images.values()]).permute(0, 3, 1, 2)
    return InMemory(pixels, None if encoded.labels is None else encoded.labels[kept])


def _try_decode(
    encoded: Encoded, positions: Iterable[int], pool: ThreadPoolExecutor
) -> Iterable[Tensor | UnreadableImageError]:
    def one(position: int) -> Tensor | UnreadableImageError:
        try:
            return encoded.pixels(position)
        except UnreadableImageError as error:
            return error

    return pool.map(one, positions)
