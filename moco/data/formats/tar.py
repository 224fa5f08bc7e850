"""Tar files in the WebDataset convention: where the images lie in them, and their labels.

Members that share a key, their path up to the first dot of the name, are one sample: KEY.jpg is its image, KEY.cls its
label. Nothing is ever extracted, so a member may be called what it likes: `..` and absolute paths are but names.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

IMAGES = {"avif", "jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"}

INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])
"""Of each image: where its bytes begin in the tar, how many they are, and its label, -1 if it has none."""


class Member(NamedTuple):
    """An image in a tar."""

    name: str
    offset: int
    size: int
    label: int


class CutOffError(Exception):
    """The tar ends in the midst of a member."""


def members(file: IO[bytes]) -> Iterator[Member]:
    """The images of a tar that can be sought in, in order. Raises CutOffError after the last that is whole, and
    tarfile.ReadError if it is no tar."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    waiting: Member | None = None  # its label may follow
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.offset_data + info.size > end:
                    raise CutOffError
                if not info.isfile():
                    continue
                key, _, suffix = _split(info.name)
                if suffix == "cls" and waiting is not None and _split(waiting.name)[0] == key:
                    content = archive.extractfile(info)
                    waiting = waiting._replace(label=_label(content.read(32) if content else b""))
                elif suffix in IMAGES:
                    if waiting is not None:
                        yield waiting
                    waiting = Member(info.name, info.offset_data, info.size, -1)
                # Python keeps all members; a shard may have many.
                archive.members = []  # type: ignore[attr-defined]
    except CutOffError:
        if waiting is not None:
            yield waiting
        raise
    except tarfile.ReadError:
        if waiting is None:
            raise
        yield waiting
        raise CutOffError from None
    if waiting is not None:
        yield waiting


def _split(name: str) -> tuple[str, str, str]:
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return folder + slash + key, dot, suffix.lower()


def _label(content: bytes) -> int:
    try:
        label = int(content)
    except ValueError:
        return -1
    return label if 0 <= label < 2**31 else -1


def stream_images(file: IO[bytes]) -> Iterator[bytes]:
    """The images of a tar that is read once, from its beginning to its end.

    Raises what the file raises, and tarfile.ReadError or EOFError where it ends too early.
    """
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for info in archive:
            if info.isfile() and _split(info.name)[2] in IMAGES:
                content = archive.extractfile(info)
                assert content is not None
                data = content.read()
                if len(data) < info.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield data
            archive.members = []  # type: ignore[attr-defined]


def add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member with nothing in it that differs from run to run; returns where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
    return archive.offset - -(-len(data) // 512) * 512
