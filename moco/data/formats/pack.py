"""Images packed into tar shards: read fast from a disk, and whole over a network."""

import hashlib
import io
import json
import logging
import multiprocessing
import tarfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from moco.data.dataset import ImageSet
from moco.data.formats.decode import UnreadableImageError, decode
from moco.data.formats.tar import INDEX, add
from moco.data.sources.shards import MANIFEST
from moco.data.sources.source import Source
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole
from moco.runtime.progress import Bar

log = logging.getLogger("moco")
_BEGUN = "packing.json"
_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp", b"II": "tif", b"MM": "tif"}
"""By an image file's first two bytes."""

Format = Literal["keep", "jpeg", "webp"]


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

    def encode(self, images: ImageSet, position: int) -> bytes:
        """The image file that goes into the shard. Raises UnreadableImageError."""
        data = images.read(position)
        # What cannot be decoded is not packed.
        pixels = images.pixels(position) if data is None else decode(data, images.name(position))
        larger = self.size is not None and min(pixels.shape[1:]) > self.size
        if data is not None and self.format == "keep" and not larger:
            return data
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
class _Job:
    """One shard: images start..stop-1 of a split."""

    split: str
    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    out: Path
    manifest: dict[str, Any]

    def __str__(self) -> str:
        shards = [shard for split in self.manifest["splits"].values() for shard in split["shards"]]
        images, size = (sum(shard[key] for shard in shards) for key in ("images", "bytes"))
        skipped = len(self.manifest["skipped"])
        left_out = f"; {skipped} that cannot be read were left out" if skipped else ""
        return f"{self.out}: {images:,} images in {len(shards)} shards, {size / 1e6:,.1f} MB{left_out}"


def pack(
    source: Source,
    out: Path,
    *,
    size: int | None = None,
    format: Format = "keep",
    quality: int = 90,
    images_per_shard: int = 10_000,
    workers: int = 2,
    max_bad: float = 0.01,
) -> Packed:
    """Writes a source's images into `out`: shards, an index beside each, and at last the manifest.

    Shards that are there whole, from a packing that was stopped, are kept. Images that cannot be read are left out, and
    named in the log and the manifest.

    Raises UserError if `out` holds something else or cannot be written, or more than `max_bad` of the images cannot be
    read.
    """
    packing = Packing(size, format, quality, images_per_shard)
    splits: dict[str, ImageSet] = {"train": source.train}
    if source.test is not None:
        splits["test"] = source.test
    options = asdict(packing) | {"images": {name: len(images) for name, images in splits.items()}}
    if (finished := _finished(out, options)) is not None:
        log.info("%s is packed already", out)
        return Packed(out, finished)
    _begin(out, options)
    jobs = [
        _Job(name, out / f"{name}-{number:06}.tar", start, min(start + images_per_shard, len(images)))
        for name, images in splits.items()
        for number, start in enumerate(range(0, len(images), images_per_shard))
    ]
    skipped: list[str] = []
    done: dict[Path, dict[str, Any]] = {}
    total = sum(len(images) for images in splits.values())
    with Bar("packing", total) as bar:
        for job, (shard, unreadable) in _run(jobs, splits, packing, workers):
            done[job.path] = shard
            for message in unreadable:
                log.warning("left out: %s", message)
            skipped += unreadable
            if len(skipped) > max_bad * total:
                raise UserError(
                    f"{len(skipped)} of {total} images cannot be read, more than --max-bad {max_bad:g}: {skipped[-1]}"
                )
            bar.advance(job.stop - job.start)
    manifest = {
        "format": "moco shards",
        "version": 1,
        "classes": source.classes,
        "options": options,
        "splits": {name: _split(name, jobs, done) for name in splits},
        "skipped": sorted(skipped),
    }
    _write_json(out / MANIFEST, manifest)
    (out / _BEGUN).unlink()
    return Packed(out, manifest)


def _split(name: str, jobs: list[_Job], done: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    # A shard all of whose images were left out is none.
    shards = [done[job.path] for job in jobs if job.split == name and done[job.path]["images"]]
    return {"images": sum(shard["images"] for shard in shards), "shards": shards}


def check(out: Path) -> list[str]:
    """What in a folder of shards is not as its manifest says, a line each."""
    manifest = json.loads((out / MANIFEST).read_text())
    wrong = []
    for shard in (one for split in manifest["splits"].values() for one in split["shards"]):
        path = out / shard["name"]
        if not path.is_file():
            wrong.append(f"{path}: is not there")
        elif _sha256(path) != shard["sha256"]:
            wrong.append(f"{path}: is not what was packed")
    return wrong


def _finished(out: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest, if these images were packed there whole. Raises UserError if others were."""
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: its {MANIFEST} cannot be read: {error}") from error
    if manifest.get("options") != options:
        raise UserError(f"{out} holds shards of other images, or packed with other options: choose another folder")
    return manifest


def _begin(out: Path, options: dict[str, Any]) -> None:
    """Notes what is being packed. Raises UserError if something else was begun there."""
    begun = out / _BEGUN
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = json.loads(begun.read_text()) if begun.exists() else None
        if before is None and any(out.iterdir()):
            raise UserError(f"{out}: is not empty: choose another folder")
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be written: {error}") from error
    if before is not None and before != options:
        raise UserError(f"{out}: packing other images, or with other options, was begun there: choose another folder")
    _write_json(begun, options)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


_Done = tuple[dict[str, Any], list[str]]
"""What the manifest says of a shard, and what was left out of it."""


def _run(jobs: list[_Job], splits: dict[str, ImageSet], packing: Packing, workers: int) -> Iterator[tuple[_Job, _Done]]:
    """Every shard as it is finished, written by several processes."""
    if workers == 0:
        for job in jobs:
            yield job, _write_shard(job, splits[job.split], packing)
        return
    # A fork of a process whose torch has threads may hang; a spawned one is sent the set, once.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(splits, packing)) as pool:
        waiting: dict[Future[_Done], _Job] = {pool.submit(_write_own, job): job for job in jobs}
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


def _write_own(job: _Job) -> _Done:
    splits, packing = _own
    return _write_shard(job, splits[job.split], packing)


def _write_shard(job: _Job, images: ImageSet, packing: Packing) -> _Done:
    """Writes a shard, what was left out of it, and its index, unless they are there."""
    index_path, left_out_path = job.path.with_suffix(".idx"), job.path.with_suffix(".skipped.json")
    if index_path.exists():  # written last, so the others are whole
        skipped = json.loads(left_out_path.read_text()) if left_out_path.exists() else []
        return _described(job.path, len(np.load(index_path, allow_pickle=False))), skipped
    rows: list[tuple[int, int, int]] = []
    skipped = []

    def write(file: Any) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for position in range(job.start, job.stop):
                try:
                    data = packing.encode(images, position)
                except UnreadableImageError as error:
                    skipped.append(str(error))
                    continue
                offset = add(archive, f"{position:09}.{_SUFFIXES.get(data[:2], 'jpg')}", data)
                label = -1 if images.labels is None else int(images.labels[position])
                if label >= 0:
                    add(archive, f"{position:09}.cls", str(label).encode())
                rows.append((offset, len(data), label))

    write_whole(job.path, write)
    if skipped:
        write_whole(left_out_path, lambda file: file.write(json.dumps(skipped).encode()))
    write_whole(index_path, lambda file: np.save(file, np.array(rows, INDEX)))
    return _described(job.path, len(rows)), skipped


def _described(path: Path, images: int) -> dict[str, Any]:
    return {"name": path.name, "images": images, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
