"""Images in tar shards, here or at a URL, as `moco pack`, img2dataset and WebDataset write them."""

import logging
import mmap
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from moco.data.formats.decode import UnreadableImageError
from moco.data.formats.tar import images_at, stream_images
from moco.data.sources.folder import file_version
from moco.data.sources.remote import is_remote, open_file, read_range
from moco.data.sources.shard_index import Content, contents, packed_contents, read_index, scan
from moco.data.sources.shard_list import MANIFEST, expand_braces, list_shards, read_manifest
from moco.runtime.errors import UserError, one_line
from moco.runtime.ranks import on_main

__all__ = ["MANIFEST", "Shards", "UnreadableShardError", "expand_braces", "open_shards"]

log = logging.getLogger("moco")
_OPEN = 64
"""Shards, and indices, that a process keeps at hand."""
T = TypeVar("T")


class UnreadableShardError(Exception):
    """A shard that cannot be read, or not to its end: the message is its name and what is wrong, in one line."""


class Shards:
    """A `Reader` of the images of all shards, one shard after another.

    Local shards are mapped into memory, so that an image is one seek. Of a remote one an image is a request; `stream`
    reads it through.

    Args:
        urls: the shards, paths or URLs.
        contents: what is in each.

    Attributes:
        urls: as given.
        counts: int64 (shards,), images of each.
        starts: int64 (shards,), the number of each one's first image.
        remote: whether they are behind URLs.
    """

    def __init__(self, urls: Sequence[str], contents: Sequence[Content]) -> None:
        self.urls = list(urls)
        self.counts = np.array([content.count for content in contents], np.int64)
        self.starts = np.concatenate(([0], np.cumsum(self.counts)))[:-1].astype(np.int64)
        self.remote = is_remote(self.urls[0])
        self._labels = [content.labels for content in contents]
        self._scanned = {i: one.index for i, one in enumerate(contents) if one.index is not None}
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._indices: OrderedDict[int, np.ndarray] = OrderedDict()
        self._versions: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict(), "_indices": OrderedDict()}

    def where(self, position: int) -> tuple[int, int]:
        """The shard of an image, and its number in it."""
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return shard, position - int(self.starts[shard])

    def read(self, position: int) -> bytes:
        """The bytes of an image. Raises UnreadableImageError if they are not there."""
        shard, number = self.where(position)
        try:
            offset, size, _ = self._index(shard)[number].tolist()
            data = self._bytes(shard, offset, size)
        except (OSError, ValueError, IndexError) as error:
            raise UnreadableImageError(f"{self.name(position)}: {one_line(error)}") from error
        if len(data) < size:
            raise UnreadableImageError(f"{self.name(position)}: the shard ends before it")
        return data

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        if self.remote:
            return read_range(self.urls[shard], offset, offset + size)
        return _kept(self._maps, shard, lambda: _map(self.urls[shard]))[offset : offset + size]

    def name(self, position: int) -> str:
        shard, number = self.where(position)
        return f"{self.urls[shard]}: image {number}"

    def version(self, position: int) -> str:
        """That of the shard; of a remote one, how many images it holds."""
        shard, _ = self.where(position)
        if self.remote:
            return str(self.counts[shard])
        return _kept(self._versions, shard, lambda: file_version(self.urls[shard]))

    def _index(self, shard: int) -> np.ndarray:
        """Of one shard, `INDEX`: what is beside it, or else, once a process, from its headers. Raises OSError."""
        if shard in self._scanned:
            return self._scanned[shard]

        def made() -> np.ndarray:
            if (index := read_index(self.urls[shard])) is None:
                index = scan(self.urls[shard]).index
            assert index is not None
            return index

        return _kept(self._indices, shard, made)

    def labels(self) -> Tensor | None:
        """int64 (n,), -1 where an image has none; None if no image has one."""
        if all(labels is None for labels in self._labels):
            return None
        known = torch.full((len(self),), -1, dtype=torch.int64)
        for start, count, labels in zip(self.starts, self.counts, self._labels, strict=True):
            if labels is not None:
                known[start : start + count] = torch.from_numpy(labels)
        if missing := int((known < 0).sum()):
            log.info("%d of %d images have no label: they are left out of evaluation", missing, len(known))
        return known

    def stream(self, shard: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """The images of a shard from number `first` to the last, with their numbers.

        Reading begins at that image where an index gives its place, else at the beginning of the shard. Raises
        UnreadableShardError, after the images that are whole.
        """
        if first >= self.counts[shard]:  # so too of a shard that is not there, which was named when it was opened
            return
        try:
            index = self._scanned.get(shard)
            if index is None and first:
                index = read_index(self.urls[shard])
            with open_file(self.urls[shard]) as file:
                images = islice(stream_images(file), first, None) if index is None else images_at(file, index[first:])
                yield from enumerate(images, first)
        except (OSError, tarfile.TarError, EOFError, ValueError) as error:
            raise UnreadableShardError(f"{self.urls[shard]}: {one_line(error)}") from error


def open_shards(spec: str) -> tuple[Shards, Shards | None, list[str] | None, Shards | None]:
    """The shards of that spelling, as a `Source` has them: train, test, the names of the classes, and bank.

    All but the first may be None, and are without a manifest of `moco pack`. The main rank reads the manifest, or lists
    the shards; the ranks share what is then read of each shard. Called on all ranks.

    Args:
        spec: a folder, a tar, a pattern with * or ? or {000..099} or {a,b}, or the same as a URL.

    Raises UserError if there are none, or nothing is in them.
    """
    spec = spec if is_remote(spec) else str(Path(spec).expanduser())
    manifest, urls = on_main(lambda: _manifest_or_list(spec))
    if manifest is not None:
        splits = {name: _packed(spec, split["shards"]) for name, split in manifest["splits"].items()}
        return splits["train"], splits.get("test"), manifest["classes"], splits.get("bank")
    shards = Shards(urls, contents(urls))
    if not len(shards):
        raise UserError(f"shards:{spec}: no images in {len(urls)} shards")
    return shards, None, None, None


def _manifest_or_list(spec: str) -> tuple[dict[str, Any] | None, list[str]]:
    manifest = None if spec.endswith(".tar") else read_manifest(spec)
    return manifest, [] if manifest is not None else list_shards(spec)


def _packed(folder: str, shards: list[dict[str, Any]]) -> Shards:
    """A split of a manifest."""
    urls = [f"{folder.rstrip('/')}/{shard['name']}" for shard in shards]
    return Shards(urls, packed_contents(urls, [shard["images"] for shard in shards]))


def _map(path: str) -> mmap.mmap:
    with open(path, "rb") as file:  # noqa: PTH123
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _kept(kept: "OrderedDict[int, T]", key: int, make: Callable[[], T]) -> T:
    """What was made for that key; what was not used for longest is let go."""
    # Several threads decode images of one process: another may let go between two lines what this one has.
    value = kept.pop(key, None)
    kept[key] = value = make() if value is None else value
    while len(kept) > _OPEN:
        kept.popitem(last=False)
    return value
