"""Images in tar shards, here or at a URL, as `moco pack`, img2dataset and WebDataset write them."""

import json
import logging
import mmap
import re
import tarfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from moco.data.formats.decode import UnreadableImageError
from moco.data.formats.tar import INDEX, CutOffError, members, stream_images
from moco.runtime.errors import UserError
from moco.runtime.progress import track

log = logging.getLogger("moco")
MANIFEST = "manifest.json"
_OPEN = 64
"""Shards, and indices, that a process keeps at hand."""
_TRIES = 3
T = TypeVar("T")


class UnreadableShardError(Exception):
    """A shard that cannot be read, or not to its end: the message is its name and what is wrong, in one line."""


class Shards:
    """A `Reader` of the images of all shards, one shard after another.

    Local shards are mapped into memory, so that an image is one seek. Of a remote one an image is a request; `stream`
    reads it through.

    Attributes:
        urls: the shards, paths or URLs.
        counts: int64 (shards,), images of each.
        starts: int64 (shards,), the number of each one's first image.
        remote: whether they are behind URLs.
    """

    def __init__(
        self, urls: Sequence[str], counts: Sequence[int], indices: dict[int, np.ndarray] | None = None
    ) -> None:
        self.urls = list(urls)
        self.counts = np.array(counts, np.int64)
        self.starts = np.concatenate(([0], np.cumsum(self.counts)))[:-1].astype(np.int64)
        self.remote = "://" in self.urls[0]
        self._known = indices or {}  # of shards that have none beside them
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._indices: OrderedDict[int, np.ndarray] = OrderedDict()

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
            raise UnreadableImageError(f"{self.name(position)}: {_words(error)}") from error
        if len(data) < size:
            raise UnreadableImageError(f"{self.name(position)}: the shard ends before it")
        return data

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        if self.remote:
            filesystem, path = _filesystem(self.urls[shard])
            return bytes(filesystem.cat_file(path, start=offset, end=offset + size))
        return _kept(self._maps, shard, lambda: _map(self.urls[shard]))[offset : offset + size]

    def name(self, position: int) -> str:
        shard, number = self.where(position)
        return f"{self.urls[shard]}: image {number}"

    def _index(self, shard: int) -> np.ndarray:
        """Of one shard, `INDEX`."""
        if shard in self._known:
            return self._known[shard]
        return _kept(self._indices, shard, lambda: _read_index(self.urls[shard]))

    def labels(self) -> Tensor | None:
        """int64 (n,), or None if the first shard's first image has none, or a shard's index cannot be had."""
        if self._index(0)["label"][0] < 0:
            return None
        return torch.from_numpy(
            np.concatenate([self._index(i)["label"] for i in range(len(self.urls))]).astype(np.int64)
        )

    def stream(self, shard: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """The images of a shard from number `first` to the last, with their numbers.

        What fails is tried again, three times in all, from where it failed. Raises UnreadableShardError.
        """
        given, tried = first, 0
        while True:
            try:
                with _open(self.urls[shard]) as file:
                    for number, data in enumerate(stream_images(file)):
                        if number >= given:
                            yield number, data
                            given, tried = number + 1, 0
                return
            except (OSError, tarfile.TarError, EOFError, ValueError) as error:
                tried += 1
                if tried == _TRIES:
                    raise UnreadableShardError(f"{self.urls[shard]}: {_words(error)}") from error
                time.sleep(0.1 * 4**tried)


def open_shards(spec: str) -> tuple[Shards, Shards | None, list[str] | None]:
    """The shards of that spelling: for training, for testing (or None), and the names of the classes (or None).

    Args:
        spec: a folder, a tar, a pattern with * or ? or {000..099} or {a,b}, or the same as a URL.

    Raises UserError if there are none, or nothing is in them.
    """
    remote = "://" in spec
    if not remote:
        spec = str(Path(spec).expanduser())
    if not spec.endswith(".tar") and (manifest := _read_manifest(spec)) is not None:
        splits = {
            name: Shards(
                [f"{spec.rstrip('/')}/{shard['name']}" for shard in split["shards"]],
                [shard["images"] for shard in split["shards"]],
            )
            for name, split in manifest["splits"].items()
        }
        return splits["train"], splits.get("test"), manifest["classes"]
    urls = _expand(spec)
    indices: dict[int, np.ndarray] = {}
    counts: list[int] = []
    unindexed = [url for url in urls if _count(url) is None]
    if unindexed:
        log.info(
            "%d shards have no index beside them and are read through once (`moco pack` writes one)", len(unindexed)
        )
    for i, url in enumerate(track(urls, "indexing") if unindexed else urls):
        known = _count(url)
        if known is None:
            indices[i] = _scan(url)
            known = len(indices[i])
        counts.append(known)
    if not sum(counts):
        raise UserError(f"shards:{spec}: no images in {len(urls)} shards")
    return Shards(urls, counts, indices), None, None


def _expand(spec: str) -> list[str]:
    """All shards that a spelling names, sorted within each pattern."""
    found: list[str] = []
    for pattern in expand_braces(spec):
        if "://" in pattern:
            filesystem, path = _filesystem(pattern)
            pattern = pattern if path.endswith(".tar") else f"{pattern.rstrip('/')}/*.tar"
            wild = any(mark in pattern for mark in "*?[")
            found += sorted(filesystem.unstrip_protocol(one) for one in filesystem.glob(pattern)) if wild else [pattern]
            continue
        pattern = f"{pattern}/*.tar" if Path(pattern).is_dir() else pattern
        found += sorted(glob(pattern)) if has_magic(pattern) else [pattern] * Path(pattern).is_file()  # noqa: PTH207
    if compressed := [one for one in found if one.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst"))]:
        raise UserError(f"{compressed[0]}: is compressed, and cannot be read by offset: unpack it to .tar")
    if not found:
        raise UserError(f"shards:{spec}: no .tar files there")
    return found


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}-{x,y}` to a-08-x, a-08-y, a-09-x and so on, as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        first, last = numbers.groups()
        choices = [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [whole for choice in choices for whole in expand_braces(before + choice + after)]


def _read_manifest(folder: str) -> dict[str, Any] | None:
    """What `moco pack` wrote beside the shards, or None."""
    where = f"{folder.rstrip('/')}/{MANIFEST}"
    try:
        with _open(where) as file:
            manifest = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {_words(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "moco shards" or manifest.get("version") != 1:
        raise UserError(f"{where}: is not the manifest of shards that this version knows")
    return manifest


def _count(url: str) -> int | None:
    """How many images a shard has, as its index or img2dataset's statistics beside it say; None if neither does."""
    try:
        if "://" not in url:
            index, tar = Path(url).with_suffix(".idx"), Path(url)
            if index.is_file() and index.stat().st_mtime >= tar.stat().st_mtime:
                return _checked(np.load(index, allow_pickle=False, mmap_mode="r"), tar.stat().st_size)
            return None
        return len(_read_index(url))
    except (OSError, ValueError, EOFError):
        pass
    if "://" in url:
        try:
            with _open(url.removesuffix(".tar") + "_stats.json") as file:
                return int(json.load(file)["successes"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return None


def _checked(index: np.ndarray, size: int) -> int | None:
    """The length of an index that fits a tar of so many bytes; None, and a warning, if it does not."""
    if (
        index.dtype != INDEX
        or index.ndim != 1
        or (len(index) and int(index["offset"][-1]) + int(index["size"][-1]) > size)
    ):
        return None
    return len(index)


def _read_index(url: str) -> np.ndarray:
    """The index beside a shard. Raises OSError or ValueError."""
    where = url.removesuffix(".tar") + ".idx"
    if "://" not in url:
        index: np.ndarray = np.load(where, allow_pickle=False, mmap_mode="r")
    else:
        with _open(where) as file:
            index = np.lib.format.read_array(file, allow_pickle=False)
    if index.dtype != INDEX or index.ndim != 1:
        raise ValueError(f"{where}: is no index of a shard")
    return index


def _scan(url: str) -> np.ndarray:
    """The index of a shard that has none, from its headers. A damaged one gives what is whole, and a warning."""
    found = []
    try:
        with _open(url) as file:
            for member in members(file):
                found.append((member.offset, member.size, member.label))
    except (CutOffError, tarfile.TarError, EOFError):
        what = f"is cut off after {len(found)} images" if found else "is not a tar file"
        log.warning("%s: %s", url, what)
    except OSError as error:
        log.warning("%s: cannot be read: %s", url, _words(error))
    return np.array(found, INDEX)


def _open(url: str) -> IO[bytes]:
    """A file or URL, to read. Raises OSError."""
    if "://" not in url:
        return Path(url).open("rb")
    filesystem, path = _filesystem(url)
    return filesystem.open(path, "rb", cache_type="readahead")  # type: ignore[no-any-return]


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises UserError if a package is missing."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {_words(error)}") from error


def _map(path: str) -> mmap.mmap:
    with open(path, "rb") as file:  # noqa: PTH123
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _kept(kept: "OrderedDict[int, T]", key: int, make: Callable[[], T]) -> T:
    """What was made for that key; what was not used for longest is let go."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > _OPEN:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _words(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return str(text)
