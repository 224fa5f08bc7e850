"""What a set of images holds, found by reading a sample of them."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from moco.data.dataset import ImageSet
from moco.data.formats.decode import UnreadableImageError, decode
from moco.data.order import shuffled

_FORMATS = ("AVIF", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows others, some of which run programs."""
_TOGETHER = 64
"""Images examined between two steps of the progress bar."""


@dataclass
class Survey:
    """What was found.

    Attributes:
        total: images in the set.
        examined: the positions of the images that were examined, int64 (n,); all below is of these alone.
        sizes: how many images are of each (width, height), upright.
        formats: how many are JPEG, PNG, ... by their first bytes; "pixels" if they are in memory, "?" if unknown.
        modes: how many are RGB, L (grey), CMYK, ..., before they are converted to RGB.
        num_bytes: of them together, encoded if they are.
        broken: position and what is wrong, of each that cannot be read.
        duplicates: how many have the very content of one before.
        digests: of the contents, each once.
        per_class: how many images of the whole set each class has, most first; None without labels.
    """

    total: int
    examined: Tensor
    per_class: list[int] | None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    broken: dict[int, str] = field(default_factory=dict)
    duplicates: int = 0
    digests: set[bytes] = field(default_factory=set)

    @property
    def readable(self) -> Tensor:
        """The positions of the images that were examined and can be read, int64 (n,)."""
        return self.examined[[position not in self.broken for position in self.examined.tolist()]]


@dataclass(frozen=True)
class _Facts:
    """What is found of one image; None: unknown."""

    digest: bytes | None = None
    num_bytes: int = 0
    format: str = "?"
    mode: str | None = None
    size: tuple[int, int] | None = None
    error: str | None = None


def survey(
    images: ImageSet,
    sample: int,
    seed: int = 0,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> Survey:
    """Examines `sample` images of the set, drawn at random without repetition; 0: all.

    `progress` wraps the iteration over the batches of positions.
    """
    n = len(images)
    count = min(sample, n) if sample else n
    examined = shuffled(torch.arange(count), n, seed, 0).sort().values
    found = Survey(n, examined, _per_class(images))
    with ThreadPoolExecutor() as pool:
        for piece in progress(examined.split(_TOGETHER)):
            positions = piece.tolist()
            for position, one in zip(positions, pool.map(partial(_examine, images), positions), strict=True):
                _count(found, position, one)
    return found


def _per_class(images: ImageSet) -> list[int] | None:
    if images.labels is None:
        return None
    return sorted(Counter(images.labels[images.labels >= 0].tolist()).values(), reverse=True)


def _count(found: Survey, position: int, one: _Facts) -> None:
    found.num_bytes += one.num_bytes
    if one.error is not None:
        found.broken[position] = one.error
    if one.digest is not None:
        found.formats[one.format] += 1
        found.duplicates += one.digest in found.digests
        found.digests.add(one.digest)
    if one.mode is not None:
        found.modes[one.mode] += 1
    if one.size is not None:
        found.sizes[one.size] += 1


def _examine(images: ImageSet, position: int) -> _Facts:
    try:
        data = images.read(position)
    except UnreadableImageError as error:
        return _Facts(error=str(error))
    return _examine_pixels(images.pixels(position)) if data is None else _examine_bytes(data, images.name(position))


def _examine_pixels(image: Tensor) -> _Facts:
    pixels = image.contiguous().numpy()
    height, width = pixels.shape[1:]
    return _Facts(_digest(pixels.tobytes()), pixels.nbytes, "pixels", "RGB", (width, height))


def _examine_bytes(data: bytes, name: str) -> _Facts:
    form, mode = "?", None
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            form, mode = image.format or "?", image.mode
    except Exception:  # whatever a header may raise, decoding reports what is wrong
        mode = None
    try:
        height, width = decode(data, name).shape[1:]
    except UnreadableImageError as error:
        return _Facts(_digest(data), len(data), form, mode, error=str(error))
    return _Facts(_digest(data), len(data), form, mode, (width, height))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def histogram(values: Counter[int], most: int = 10) -> list[tuple[int, int, int]]:
    """(from, up to and including, how many) of whole numbers in at most `most` + 1 bins, as wide as 1, 2 or 5 tens."""
    low, high = min(values), max(values)
    widths = (digit * 10**power for power in range(19) for digit in (1, 2, 5))
    width = next(width for width in widths if (high - low) // width < most)
    counts: Counter[int] = Counter()
    for value, count in values.items():
        counts[value // width] += count
    return [(k * width, (k + 1) * width - 1, counts[k]) for k in range(low // width, high // width + 1)]
