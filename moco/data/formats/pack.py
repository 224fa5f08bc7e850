"""Images packed into tar shards: read fast from a disk, and whole over a network."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moco.data.dataset import ImageSet
from moco.data.formats.shard_writer import (
    Format,
    Job,
    Packing,
    Record,
    read_record,
    run_jobs,
    sha256,
    source_digest,
    write_shard,
)
from moco.data.sources.shards import MANIFEST
from moco.data.sources.source import Source
from moco.runtime.errors import UserError, one_line
from moco.runtime.files import write_whole
from moco.runtime.progress import Bar

log = logging.getLogger("moco")
_BEGUN = "packing.json"
_INSTEAD = "choose another folder, or delete this one"


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

    Shards that are there whole, from a packing that was stopped, are kept if they were made of these very images: all
    of those are read again and compared by their digests, which takes as long as reading them, and no decoding. Images
    that cannot be read are left out, and named in the log and the manifest.

    Raises UserError, and changes nothing, if `out` holds something else, the shards of other images too; and if it
    cannot be written, or more than `max_bad` of the images cannot be read.
    """
    packing = Packing(size, format, quality, images_per_shard)
    splits: dict[str, ImageSet | None] = {"train": source.train, "test": source.test, "bank": source.bank}
    packer = _Packer({name: images for name, images in splits.items() if images}, source.classes, out, packing, workers)
    if (manifest := packer.finished()) is not None:
        log.info("%s is packed already", out)
        return Packed(out, manifest)
    packer.begin()
    return Packed(out, packer.write(packer.kept(), max_bad))


def check(out: Path) -> list[str]:
    """What in a folder of shards is not as its manifest describes it, a line each."""
    manifest = json.loads((out / MANIFEST).read_text())
    wrong = []
    for shard in (one for split in manifest["splits"].values() for one in split["shards"]):
        path = out / shard["name"]
        if not path.is_file():
            wrong.append(f"{path}: is not there")
        elif sha256(path) != shard["sha256"]:
            wrong.append(f"{path}: is not what was packed")
    return wrong


class _Packer:
    """Splits of images on their way into a folder of shards."""

    def __init__(
        self, splits: dict[str, ImageSet], classes: list[str] | None, out: Path, packing: Packing, workers: int
    ) -> None:
        self.splits, self.classes, self.out, self.packing, self.workers = splits, classes, out, packing, workers
        self.options = asdict(packing) | {
            "images": {name: len(images) for name, images in splits.items()},
            "labels": _digest([classes, *([] if i.labels is None else i.labels.tolist() for i in splits.values())]),
        }
        self.jobs = [
            Job(name, out / f"{name}-{number:06}.tar", start, min(start + packing.images_per_shard, len(images)))
            for name, images in splits.items()
            for number, start in enumerate(range(0, len(images), packing.images_per_shard))
        ]

    def finished(self) -> dict[str, Any] | None:
        """The manifest, if these images were packed there whole. Raises UserError if others were."""
        try:
            manifest: dict[str, Any] = json.loads((self.out / MANIFEST).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.out}: its {MANIFEST} cannot be read: {one_line(error)}") from error
        if not isinstance(manifest, dict) or manifest.get("options") != self.options:
            raise UserError(
                f"{self.out} holds shards of other images, or packed with other options or by another version: "
                f"{_INSTEAD}"
            )
        if wrong := check(self.out):
            raise UserError(f"{wrong[0]}: {_INSTEAD}")
        found = self._source_digests(self.jobs)
        for name, split in manifest["splits"].items():
            if split.get("source") != _digest([found[job] for job in self.jobs if job.split == name]):
                raise UserError(f"{self.out} holds shards of other images, though as many: {_INSTEAD}")
        return manifest

    def begin(self) -> None:
        """Notes what is being packed. Raises UserError if something else was begun there."""
        begun = self.out / _BEGUN
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            before = json.loads(begun.read_text()) if begun.exists() else None
            if before is None and any(self.out.iterdir()):
                raise UserError(f"{self.out}: is not empty, and {_BEGUN} is not in it: choose another folder")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.out}: cannot be written: {one_line(error)}") from error
        if before is not None and before != self.options:
            raise UserError(f"{self.out}: packing other images, or with other options, was begun there: {_INSTEAD}")
        _write_json(begun, self.options)

    def kept(self) -> dict[Job, Record]:
        """The shards that are there. Raises UserError if one of them was made of other images."""
        kept = {job: record for job in self.jobs if (record := read_record(job)) is not None}
        for job, digest in self._source_digests(list(kept)).items():
            if digest != kept[job].source:
                raise UserError(f"{job.path} was packed from other images than these: {_INSTEAD}")
        return kept

    def _source_digests(self, jobs: list[Job]) -> dict[Job, str]:
        if not jobs:
            return {}
        found: dict[Job, str] = {}
        with Bar("comparing with what is packed", sum(job.stop - job.start for job in jobs)) as bar:
            for job, digest in run_jobs(source_digest, jobs, self.splits, self.packing, self.workers):
                found[job] = digest
                bar.advance(job.stop - job.start)
        return found

    def write(self, kept: dict[Job, Record], max_bad: float) -> dict[str, Any]:
        """Writes all shards but the kept ones, and the manifest, which it returns."""
        records = dict(kept)
        skipped = [message for record in kept.values() for message in record.skipped]
        total = sum(len(images) for images in self.splits.values())
        missing = [job for job in self.jobs if job not in kept]
        with Bar("packing", total, done=sum(job.stop - job.start for job in kept)) as bar:
            for job, record in run_jobs(
                write_shard, missing, self.splits, self.packing, self.workers if missing else 0
            ):
                records[job] = record
                for message in record.skipped:
                    log.warning("left out: %s", message)
                skipped += record.skipped
                _check_skipped(skipped, total, max_bad)
                bar.advance(job.stop - job.start)
        _check_skipped(skipped, total, max_bad)
        found = {name: self._split([records[job] for job in self.jobs if job.split == name]) for name in self.splits}
        if not found["train"]["images"]:
            raise UserError(f"none of the training images can be read: {skipped[-1]}")
        manifest = {
            "format": "moco shards",
            "version": 1,
            "classes": self.classes,
            "options": self.options,
            "splits": {name: split for name, split in found.items() if split["images"]},
            "skipped": sorted(skipped),
        }
        _write_json(self.out / MANIFEST, manifest)
        for path in (*(job.record for job in self.jobs), self.out / _BEGUN):
            path.unlink(missing_ok=True)
        return manifest

    def _split(self, records: list[Record]) -> dict[str, Any]:
        # A shard all of whose images were left out is none.
        shards = [
            {"name": one.name, "images": one.images, "bytes": one.bytes, "sha256": one.sha256}
            for one in records
            if one.images
        ]
        images = sum(record.images for record in records)
        return {"images": images, "source": _digest([record.source for record in records]), "shards": shards}


def _check_skipped(skipped: list[str], total: int, max_bad: float) -> None:
    if len(skipped) > max_bad * total:
        raise UserError(
            f"{len(skipped)} of {total} images cannot be read, more than --max-bad {max_bad:g}: {skipped[-1]}"
        )


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=32).hexdigest()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
