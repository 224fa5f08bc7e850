"""Features of whole data sets, written as they come: memory does not grow with them, and what was stopped continues."""

import hashlib
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moco.data import ImageSet
from moco.evaluation.features import Progress, encode_gathered, multiple_of_ranks
from moco.runtime.device import Device
from moco.runtime.errors import UserError, one_line
from moco.runtime.files import write_whole
from moco.runtime.ranks import is_main, on_main
from moco.views import CentreCrop

About = dict[str, Any]
"""What features are of: the encoder, its input, the data."""
_SECONDS = 5.0
"""Between two notes of how far it is."""
BLOCK = 4096
"""Rows that are read at once."""


class Row(NamedTuple):
    """The image that a row of features is of."""

    split: str
    position: int
    """In its split."""
    name: str
    label: int
    """-1 without one."""

    @property
    def title(self) -> str:
        """A path as it is; before another name, such as a number, stands the split."""
        return self.name if os.sep in self.name else f"{self.split}: {self.name}"


@dataclass(frozen=True)
class Embedding:
    """Features on the disk of all images that can be read, set after set, each in its order.

    Attributes:
        sets: the images, by split.
        folder: where the features are.
        num_features: numbers of a feature.
        unreadable: the images that have no row, as places in all sets together, ascending.
    """

    sets: Mapping[str, ImageSet]
    folder: Path
    num_features: int
    unreadable: list[int]

    def __len__(self) -> int:
        return sum(map(len, self.sets.values())) - len(self.unreadable)

    def blocks(self) -> Iterator[Tensor]:
        """The features, float32 (b, num_features), block by block, as the encoder gave them."""
        with (self.folder / "features").open("rb") as file:
            while data := file.read(BLOCK * self.num_features * 4):
                yield torch.frombuffer(bytearray(data), dtype=torch.float32).view(-1, self.num_features)

    def rows(self) -> Iterator[Row]:
        """What image each row is of."""
        unreadable, offset = set(self.unreadable), 0
        for split, images in self.sets.items():
            labels = None if images.labels is None else images.labels.tolist()
            for position in range(len(images)):
                if offset + position not in unreadable:
                    label = -1 if labels is None else labels[position]
                    yield Row(split, position, images.name(position), label)
            offset += len(images)

    def unreadable_names(self) -> list[str]:
        """The names of the images that have no row."""
        return [row.name for row in rows_of(self.sets, self.unreadable).values()]

    def discard(self) -> None:
        """Deletes the folder, as what was in it is elsewhere by now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def rows_of(sets: Mapping[str, ImageSet], places: Iterable[int]) -> dict[int, Row]:
    """The images at some places of all sets together, in the order of the places."""
    ends, found = list(accumulate(map(len, sets.values()))), {}
    for place in sorted(set(places)):
        number = bisect_right(ends, place)
        split, images = list(sets.items())[number]
        position = place - (ends[number] - len(images))
        label = -1 if images.labels is None else int(images.labels[position])
        found[place] = Row(split, position, images.name(position), label)
    return found


def fingerprint(encoder: nn.Module, views: CentreCrop) -> str:
    """32 hexadecimal digits that differ if the features of an image do: of the weights, and how images are seen."""
    digest = hashlib.blake2b(f"{views.size} {views.pretexts[0].normalisation}".encode(), digest_size=16)
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def embed(
    encoder: nn.Module,
    sets: Mapping[str, ImageSet],
    views: CentreCrop,
    device: Device,
    folder: Path,
    about: About,
    batch_size: int = 256,
    workers: int | None = 0,
    progress: Progress = iter,
) -> Embedding:
    """The features of all images of some sets, written into a folder; called on all ranks, which share the work.

    Stopped anywhere and called again with the same arguments, on the same or another number of ranks, it goes on where
    it was, give or take a few seconds. The main rank writes. Memory: a batch, and of each image its path and 24 bytes,
    half a kilobyte.

    Args:
        sets: the images, by split.
        folder: where the features go; it is made, or holds what an earlier call left.
        about: what the features are of, plain data. It decides whether the folder is of the same work.

    Raises:
        UserError: the folder is of other work or cannot be written; more images are unreadable than their set allows.
    """
    of = {split: f"{len(images)} {images.digest()}" for split, images in sets.items()} if is_main() else {}
    store = _Store(folder, about | {"images": of})
    store.done, store.num_features, store.unreadable = on_main(store.read)
    batch_size, offset = multiple_of_ranks(batch_size), 0
    with closing(store):
        for images in sets.values():
            n, first = len(images), max(0, store.done - offset) // batch_size
            images.agree_on_unreadable([place - offset for place in store.unreadable if 0 <= place - offset < n])
            if store.done < offset + n:
                start = first * batch_size
                store.open(offset + start)
                for rows, places in encode_gathered(
                    encoder, images, views, device, batch_size, workers, progress, first
                ):
                    stop = min(start + batch_size, n)
                    store.add(rows, offset + places, range(offset + start, offset + stop))
                    start = stop
                images.agree_on_unreadable()
            offset += n
        store.save()
    return Embedding(sets, folder, store.num_features, store.unreadable)


@dataclass
class _Store:
    """The folder, on the main rank; on the others only how far it is.

    features         float32, row after row
    progress.json    how many images they are of, and which of these have no row: never more than is in `features`

    Attributes:
        done: images that are encoded, or cannot be.
    """

    folder: Path
    about: About
    done: int = 0
    num_features: int = 0
    unreadable: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file: Any = None
        self._saved = time.monotonic()

    def read(self) -> tuple[int, int, list[int]]:
        """What an earlier call left: images done, numbers of a feature, unreadable images. Raises UserError."""
        path = self.folder / "progress.json"
        try:
            self.folder.mkdir(exist_ok=True)
            if not path.exists():
                return 0, 0, []
            left = json.loads(path.read_text())
            about, done, num_features, unreadable = (
                left[name] for name in ("about", "done", "num_features", "unreadable")
            )
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {one_line(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is damaged: delete {self.folder} to start again") from error
        if about != json.loads(json.dumps(self.about)):
            changed = ", ".join(name for name in self.about if about.get(name) != self.about[name])
            raise UserError(
                f"{self.folder}: holds the first features of other work ({changed}): delete it, or change --out"
            )
        return done, num_features, unreadable

    def open(self, done: int) -> None:
        """Goes on at that image; what was written of later ones is cut off."""
        self.unreadable = [place for place in self.unreadable if place < done]
        self.done = done
        if not is_main():
            return
        size = (done - len(self.unreadable)) * self.num_features * 4
        self._note()  # before anything is cut off: a process that dies in between must not count on it
        try:
            if self._file is None:
                self._file = (self.folder / "features").open("r+b" if done else "wb")
            if self._file.seek(0, os.SEEK_END) < size:
                raise UserError(f"{self.folder / 'features'}: is damaged: delete {self.folder} to start again")
            self._file.seek(size)
            self._file.truncate()
        except OSError as error:
            raise self._unwritten(error) from error

    def add(self, rows: Tensor, places: Tensor, of: range) -> None:
        """The features (b, num_features) of the images at these places; the others of that range are unreadable."""
        self.num_features = rows.shape[1]
        self.unreadable += sorted(set(of) - set(places.tolist()))
        self.done = of.stop
        if self._file is None:
            return
        try:
            self._file.write(np.ascontiguousarray(rows.float().numpy()).data)
        except OSError as error:
            raise self._unwritten(error) from error
        if time.monotonic() - self._saved > _SECONDS:
            self.save()

    def save(self) -> None:
        """Notes how far it is, once that is on the disk."""
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritten(error) from error
        self._note()

    def _note(self) -> None:
        values = {
            "about": self.about,
            "done": self.done,
            "num_features": self.num_features,
            "unreadable": self.unreadable,
        }
        write_whole(self.folder / "progress.json", lambda file: file.write(json.dumps(values).encode()))
        self._saved = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _unwritten(self, error: OSError) -> UserError:
        return UserError(f"{self.folder / 'features'} cannot be written: {one_line(error)}")
