"""What is in a shard: how many images, where, with which labels; from what is beside it, or from the shard itself."""

import io
import json
import logging
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from moco.data.formats.tar import INDEX, CutOffError, members
from moco.data.sources.remote import is_remote, open_file, read_if_there
from moco.runtime.errors import UserError, one_line
from moco.runtime.progress import track
from moco.runtime.ranks import gather_objects, rank, world_size

log = logging.getLogger("moco")
_AT_ONCE = 16
"""Shards that a rank opens at once: most of the time goes by waiting for the answer."""
_NAMED = 10
"""Shards that are named in the log one by one; of more, the number."""
T = TypeVar("T")
U = TypeVar("U")


@dataclass
class Content:
    """What is in a shard.

    Attributes:
        count: images.
        labels: int32 (count,), -1 where an image has none; None if no image has one, or they are not known.
        index: `INDEX` (count,), where there is none beside the shard.
        damage: what is wrong with it, in words; None if nothing is.
    """

    count: int
    labels: np.ndarray | None = None
    index: np.ndarray | None = None
    damage: str | None = None

    @classmethod
    def of(cls, index: np.ndarray) -> "Content":
        labels = np.array(index["label"])
        return cls(len(index), labels if (labels >= 0).any() else None)


def contents(urls: Sequence[str]) -> list[Content]:
    """What is in each shard: by the index beside it, by img2dataset's statistics, or else by reading it through.

    Ranks share the work, so that each index is read once, by one rank; every rank gets the counts and the labels, which
    are 4 bytes an image, and not the offsets, 12 more, which whoever needs them reads again: a shard that is read from
    its beginning needs none. Images that cannot be read are left out, and their shards named in the log.

    Raises UserError if a shard, or what is beside it, cannot be read for another reason than that it is not there: what
    a run trains on must not depend on the network.
    """
    found = shared(_or_user_error(beside), urls)
    unknown = [url for url, content in zip(urls, found, strict=True) if content is None]
    if unknown:
        log.info("%d shards have no index beside them and are read through once (`moco pack` writes one)", len(unknown))
    scanned = iter(shared(_or_user_error(scan), unknown, "indexing"))
    complete = [next(scanned) if content is None else content for content in found]
    damaged = [f"{url}: {one.damage}" for url, one in zip(urls, complete, strict=True) if one.damage]
    for line in damaged[:_NAMED]:
        log.warning("%s", line)
    if len(damaged) > _NAMED:
        log.warning("and %d more shards that are damaged or not there", len(damaged) - _NAMED)
    return complete


def packed_contents(urls: Sequence[str], counts: Sequence[int]) -> list[Content]:
    """The same of shards whose counts a manifest gives, so that only the labels are wanted; shared in the same way."""
    found = shared(_or_user_error(_read_index), urls)
    known = (None if index is None or len(index) != n else index for index, n in zip(found, counts, strict=True))
    return [Content(n) if index is None else Content.of(index) for index, n in zip(known, counts, strict=True)]


def shared(act: Callable[[T], U], items: Sequence[T], title: str | None = None) -> list[U]:
    """`act` of each item, in their order, on every rank: ranks share the items, and work on several at once.

    With a title, a progress bar is shown. Called on all ranks.
    """
    if not items:
        return []
    own = items[rank() :: world_size()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        done = pool.map(act, own)
        ranks = gather_objects([result for _, result in zip(track(own, title) if title else own, done, strict=True)])
    return [ranks[i % world_size()][i // world_size()] for i in range(len(items))]


def _or_user_error(act: Callable[[str], U]) -> Callable[[str], U]:
    def called(url: str) -> U:
        try:
            return act(url)
        except OSError as error:
            raise UserError(f"{url}: cannot be read: {one_line(error)}") from error

    return called


def beside(url: str) -> Content | None:
    """What is in a shard by its index, or by img2dataset's statistics, which give no labels; None without either.

    Raises OSError if there may be one, and it cannot be read.
    """
    if (index := _read_index(url)) is not None:
        return Content.of(index)
    statistics = read_if_there(url.removesuffix(".tar") + "_stats.json") if is_remote(url) else None
    try:
        return None if statistics is None else Content(int(json.loads(statistics)["successes"]))
    except (ValueError, KeyError, TypeError):
        return None


def _read_index(url: str) -> np.ndarray | None:
    """`read_index` of an index that fits its shard as far as that is soon known, else None."""
    index = read_index(url)
    if index is None or is_remote(url):
        return index
    tar, own = Path(url), Path(url).with_suffix(".idx")
    try:
        size, newer = tar.stat().st_size, own.stat().st_mtime >= tar.stat().st_mtime
    except FileNotFoundError:
        return None
    fits = len(index) == 0 or int(index["offset"][-1]) + int(index["size"][-1]) <= size
    return index if newer and fits else None


def read_index(url: str) -> np.ndarray | None:
    """The index beside a shard, `INDEX` (n,), or None if there is none, or something else. Raises OSError."""
    where = url.removesuffix(".tar") + ".idx"
    try:
        if is_remote(url):
            content = read_if_there(where)
            if content is None:
                return None
            index: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        else:
            index = np.load(where, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError, FileNotFoundError):
        return None
    return index if index.dtype == INDEX and index.ndim == 1 else None


def scan(url: str) -> Content:
    """What is in a shard by its headers. A damaged one gives what is whole. Raises OSError."""
    found, damage = [], None
    try:
        with open_file(url) as file:
            for member in members(file):
                found.append((member.offset, member.size, member.label))
    except (CutOffError, tarfile.TarError, EOFError):
        damage = f"is cut off after {len(found)} images" if found else "is not a tar file"
    except FileNotFoundError:
        damage = "there is no such file"
    index = np.array(found, INDEX)
    content = Content.of(index)
    content.index, content.damage = index, damage
    return content
