"""Tar files in the WebDataset convention: where the images lie in them, and their labels.

Members that share a key (the path up to the first dot of the name) are one sample in any order: KEY.jpg is its image,
KEY.cls its label, or else an integer "label" or "cls" in KEY.json. Nothing is ever extracted, so a member may be called
what it likes: `..` and absolute paths are but names.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

IMAGES = {"avif", "jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"}

_BLOCK = 512
"""Bytes of a header; a tar ends with one of zeros."""
_MAX_LABEL_BYTES = 1 << 20
"""A .cls or .json beyond is not read: it would fill the memory, and is no label."""

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
    sample = _Sample("")
    begun = False  # whether it is a tar at all
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.offset_data + info.size > end:
                    raise CutOffError
                begun = True
                if info.isfile():
                    key, _, suffix = _split(info.name)
                    if key != sample.key or suffix in sample.suffixes:
                        yield from sample.labelled()
                        sample = _Sample(key)
                    sample.add(archive, info, suffix)
                # Python keeps all members; a shard may have many.
                archive.members = []  # type: ignore[attr-defined]
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):  # Python ends without a word where no header follows
                raise CutOffError
    except (CutOffError, tarfile.ReadError) as error:
        if isinstance(error, tarfile.ReadError) and not begun:
            raise
        yield from sample.labelled()
        raise CutOffError from None
    yield from sample.labelled()


class _Sample:
    """Members that follow each other and share a key, in any order: WebDataset's own writer puts .cls before .jpg."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.suffixes: set[str] = set()
        self.images: list[Member] = []
        self.label, self.json_label = -1, -1

    def add(self, archive: tarfile.TarFile, info: tarfile.TarInfo, suffix: str) -> None:
        self.suffixes.add(suffix)
        if suffix in IMAGES:
            self.images.append(Member(info.name, info.offset_data, info.size, -1))
        elif suffix in ("cls", "json") and info.size <= _MAX_LABEL_BYTES:
            content = archive.extractfile(info)
            data = content.read() if content else b""
            if suffix == "cls":
                self.label = _label(data)
            else:
                self.json_label = _json_label(data)

    def labelled(self) -> Iterator[Member]:
        """The images, with the label of .cls or else of .json."""
        label = self.label if self.label >= 0 else self.json_label
        return (image._replace(label=label) for image in self.images)


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


def _json_label(content: bytes) -> int:
    """ "label" or "cls" of a JSON object, if it is an integer; else -1."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return -1
    if isinstance(values, dict):
        for name in ("label", "cls"):
            if type(values.get(name)) is int and 0 <= values[name] < 2**31:
                return int(values[name])
    return -1


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


def images_at(file: IO[bytes], index: np.ndarray) -> Iterator[bytes]:
    """The images at the places that an `INDEX` gives, one after another.

    Raises what the file raises, and EOFError where it ends too early.
    """
    for offset, size, _ in index.tolist():
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise EOFError("the shard ends before its last image")
        yield data


def add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member with nothing in it that differs from run to run; returns where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
    return archive.offset - -(-len(data) // 512) * 512
