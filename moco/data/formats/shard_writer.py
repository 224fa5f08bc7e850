"""One shard of `moco pack`: its images as they are encoded, its index, and the record of what it was made of."""

import hashlib
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco.data.dataset import ImageSet
from moco.data.formats.decode import UnreadableImageError, decode
from moco.data.formats.tar import INDEX, add
from moco.runtime.files import write_whole

_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp", b"II": "tif", b"MM": "tif"}
"""By an image file's first two bytes."""

Format = Literal["keep", "jpeg", "webp"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        size: to how many pixels the shorter side of a larger image is resized; None: it is not.
        format: what images are encoded as; keep: their bytes stay as they are, and a resized image is a JPEG.
        quality: of JPEG and WebP, 1 to 100.
        images_per_shard: how many go into a shard.
    """

    size: int | None = None
    format: Format = "keep"
    quality: int = 90
    images_per_shard: int = 10_000

    def encode(self, image: bytes | Tensor, name: str) -> bytes:
        """The image file that goes into the shard, of an image file or pixels, uint8 (3, height, width).

        Raises UnreadableImageError: what cannot be decoded is not packed.
        """
        pixels = decode(image, name) if isinstance(image, bytes) else image
        larger = self.size is not None and min(pixels.shape[1:]) > self.size
        if isinstance(image, bytes) and self.format == "keep" and not larger:
            return image
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        if self.size is not None and larger:
            scale = self.size / min(picture.size)
            width, height = (max(self.size, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        if self.format == "keep" and not larger:
            picture.save(file, "PNG")  # raw pixels, without loss
        else:
            picture.save(file, "WEBP" if self.format == "webp" else "JPEG", quality=self.quality)
        return file.getvalue()


@dataclass(frozen=True)
class Job:
    """One shard: images start..stop-1 of a split."""

    split: str
    path: Path
    start: int
    stop: int

    @property
    def record(self) -> Path:
        """Where its `Record` is kept until the manifest is written."""
        return self.path.with_suffix(".json")


class Record(NamedTuple):
    """What a shard holds, and what it was made of.

    Attributes:
        name: of its file.
        images: how many are in it.
        bytes: its size.
        sha256: of its bytes.
        source: `source_digest` of the images that it was made of, those left out too.
        skipped: why each image that was left out cannot be read.
    """

    name: str
    images: int
    bytes: int
    sha256: str
    source: str
    skipped: list[str]


class _Digest:
    """Of images one after another: of an image file's bytes, or of pixels and their shape."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)

    def add(self, image: bytes | Tensor | None) -> None:
        """None: an image that cannot be read."""
        if isinstance(image, Tensor):
            self._hash.update(f"pixels {tuple(image.shape)}\n".encode())
            self._hash.update(image.contiguous().numpy().data)
        else:
            self._hash.update(b"unreadable\n" if image is None else f"file {len(image)}\n".encode())
            self._hash.update(image or b"")

    def hex(self) -> str:
        return self._hash.hexdigest()


def source_digest(job: Job, images: ImageSet, packing: Packing) -> str:
    """A digest of the images that a shard is made of. It reads all of them, and decodes none."""
    digest = _Digest()
    for position in range(job.start, job.stop):
        try:
            digest.add(_image(images, position))
        except UnreadableImageError:
            digest.add(None)
    return digest.hex()


def write_shard(job: Job, images: ImageSet, packing: Packing) -> Record:
    """Writes a shard, its index, and last its record: where there is one, the others are whole."""
    rows: list[tuple[int, int, int]] = []
    skipped: list[str] = []
    digest = _Digest()

    def encoded(position: int) -> bytes | None:
        image = None
        try:
            image = _image(images, position)
            return packing.encode(image, images.name(position))
        except UnreadableImageError as error:
            skipped.append(str(error))
            return None
        finally:
            digest.add(image)

    def write(file: Any) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for position in range(job.start, job.stop):
                if (data := encoded(position)) is None:
                    continue
                offset = add(archive, f"{position:09}.{_SUFFIXES.get(data[:2], 'jpg')}", data)
                label = -1 if images.labels is None else int(images.labels[position])
                if label >= 0:
                    add(archive, f"{position:09}.cls", str(label).encode())
                rows.append((offset, len(data), label))

    write_whole(job.path, write)
    write_whole(job.path.with_suffix(".idx"), lambda file: np.save(file, np.array(rows, INDEX)))
    size = job.path.stat().st_size
    record = Record(job.path.name, len(rows), size, sha256(job.path), digest.hex(), skipped)
    write_whole(job.record, lambda file: file.write(json.dumps(record._asdict(), indent=1).encode()))
    return record


def read_record(job: Job) -> Record | None:
    """The record of a shard that is there whole, as it was written; None if there is none."""
    try:
        record = Record(**json.loads(job.record.read_text()))
        whole = job.path.with_suffix(".idx").is_file() and sha256(job.path) == record.sha256
    except (OSError, ValueError, TypeError):
        return None
    return record if whole else None


def _image(images: ImageSet, position: int) -> bytes | Tensor:
    """The image file, or the pixels where there are only these. Raises UnreadableImageError."""
    data = images.read(position)
    return images.pixels(position) if data is None else data


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Work = Callable[[Job, ImageSet, Packing], Result]


def run_jobs(
    work: Work[Result], jobs: Iterable[Job], splits: dict[str, ImageSet], packing: Packing, workers: int
) -> Iterator[tuple[Job, Result]]:
    """Every job and its result as it is finished, by so many processes; 0: by this one."""
    if workers == 0:
        for job in jobs:
            yield job, work(job, splits[job.split], packing)
        return
    # A fork of a process whose torch has threads may hang; a spawned one is sent the set, once.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(splits, packing)) as pool:
        waiting: dict[Future[Result], Job] = {pool.submit(_work, work, job): job for job in jobs}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_own: tuple[dict[str, ImageSet], Packing]


def _start(splits: dict[str, ImageSet], packing: Packing) -> None:
    global _own
    torch.set_num_threads(1)
    _own = splits, packing


def _work(work: Work[Result], job: Job) -> Result:
    splits, packing = _own
    return work(job, splits[job.split], packing)
