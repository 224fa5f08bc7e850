"""Near duplicates: found by their features, confirmed by their pixels, in groups.

Features find candidates, whatever the size of an image, its compression and its tint; but they are made to ignore what
differs between two photographs of one kind of thing, so that a weak encoder takes these for copies too. Pixels decide,
by `pixel_correlation`.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.collectives import local, world_size
from moco.data import ImageSet, Indices, Loader
from moco.data.formats.decode import UnreadableImageError
from moco.evaluation.approximate import Index, neighbours_by, uses_faiss
from moco.evaluation.embedding import rows_of
from moco.evaluation.features import encode, evaluating
from moco.evaluation.knn import half_unit
from moco.evaluation.pixel_correlation import THUMB, correlations, thumb
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather_objects, on_main
from moco.views import CentreCrop, Pretext, Views

NEIGHBOURS = 16
"""Of each image, that may be its copies: a larger group is connected through them."""
FOUND = 0.95
"""The share of altered copies that the threshold lets pass: generous, as pixels decide."""
_SAMPLE = 512
"""Images whose altered copies the threshold is found by."""
CORRELATION = 0.75
"""The least correlation of a duplicate's pixels: of 84 CIFAR-10 pairs above it all but about four are duplicates by eye
(docs/duplicates.md)."""
_PAIRS = 1024
"""Pairs of images whose pixels are compared at once."""


class Pair(NamedTuple):
    """Two images that may be copies, as places in all sets together, the first below the second."""

    first: int
    second: int
    cosine: float
    correlation: float
    """Of their pixels, in -1..1."""


@dataclass
class Duplicates:
    """Near duplicates; images are places in all sets together, those of the test set last.

    Attributes:
        count: images that were compared.
        first_test: the place of the first test image; that of the last image and 1 without a test set.
        threshold: the least cosine of a candidate.
        correlation: the least correlation of the pixels of a confirmed pair.
        pairs: all candidates.
        confirmed: those whose pixels are alike.
        groups: connected components of these, those with test and training images first, then the largest.
    """

    count: int
    first_test: int
    threshold: float
    correlation: float
    pairs: list[Pair]

    def __post_init__(self) -> None:
        self.confirmed = [pair for pair in self.pairs if pair.correlation >= self.correlation]
        groups = components((pair.first, pair.second) for pair in self.confirmed)
        self.groups = sorted(groups, key=lambda group: not self.is_leak(group[0], group[-1]))

    def is_leak(self, first: int, second: int) -> bool:
        """Whether the one is a training image, the other a test image."""
        return first < self.first_test <= second

    def leaked(self, pairs: Iterable[Pair]) -> int:
        """How many test images have one of these duplicates among the training images."""
        return len({pair.second for pair in pairs if self.is_leak(pair.first, pair.second)})

    @property
    def dropped(self) -> list[int]:
        """The images to leave out: of each group all but its first test image, or, without one, its first image."""
        kept = {next((place for place in group if place >= self.first_test), group[0]) for group in self.groups}
        return sorted({place for group in self.groups for place in group} - kept)


def find_duplicates(
    encoder: nn.Module,
    sets: Mapping[str, ImageSet],
    centre: CentreCrop,
    device: Device,
    threshold: float | None = None,
    correlation: float = CORRELATION,
    index: Index = "auto",
    workers: int | None = 0,
    progress: Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]] = lambda _: iter,
) -> Duplicates:
    """Near duplicates among the images of all sets; called on all ranks, which share the work.

    Features are kept in half precision: 256 bytes an image for 128 of them.

    Args:
        sets: by split, `test` the last if it is there.
        threshold: the least cosine of a candidate; None: that of `copy_threshold` of the first set.
        correlation: the least correlation of the pixels of a duplicate.
        progress: given what is done, wraps the iteration over it.

    Raises UserError where fewer than two images can be read, or more cannot than their set allows.
    """
    images_in_all = sum(map(len, sets.values()))
    uses_faiss(index, images_in_all, images_in_all)  # what cannot be is known before the work
    values, places, offset = [], [], 0
    for split, images in sets.items():
        bar = progress(f"embedding {split}")
        some, own = encode(encoder, images, centre, device, 256, workers, bar, keep=half_unit)
        images.agree_on_unreadable()
        if threshold is None and len(own):
            threshold = on_main(partial(copy_threshold, encoder, images, some, own, centre, device))
        values.append(some)
        places.append(own + offset)
        offset += len(images)
    features, place = torch.cat(values), torch.cat(places)
    if len(place) < 2 or threshold is None:
        raise UserError(f"{len(place)} images can be read: duplicates take two")
    first_test = offset - len(sets.get("test", ()))
    candidates = find_candidates(features, place >= first_test, threshold, device.device, index)
    named = [(int(place[i]), int(place[j]), cosine) for i, j, cosine in candidates]

    def pixels(at: int) -> Tensor:
        row = rows_of(sets, [at])[at]
        return sets[row.split].pixels(row.position)

    pairs = on_main(lambda: confirm(named, pixels, progress("comparing pixels")))
    return Duplicates(len(place), first_test, threshold, correlation, pairs)


def altered(pretext: Pretext) -> Pretext:
    """An altered copy of an image, as ciFAIR has near duplicates (Barz and Denzler 2020): the same photograph, cropped
    by up to a quarter of its area, its brightness, contrast and saturation changed by up to a fifth."""
    return replace(
        pretext,
        area=(0.75, 1.0),
        log_ratio=(0.0, 0.0),
        jitter=(0.2, 0.2, 0.2, 0.05),
        jitter_probability=1.0,
        grey_probability=0.0,
        blur_probability=0.0,
        solarise_probability=0.0,
        flip_probability=0.0,
    )


@torch.no_grad()
def copy_threshold(
    encoder: nn.Module, images: ImageSet, values: Tensor, places: Tensor, centre: CentreCrop, device: Device
) -> float:
    """The cosine that `FOUND` of the images have at least with altered copies of themselves.

    It depends on the encoder, and so is measured: one that ignores more has all cosines nearer to 1.

    Args:
        values, places: features (n, d) of images of the set, and their places in it.
    """
    chosen = torch.arange(len(places))[:: max(1, len(places) // _SAMPLE)][:_SAMPLE]
    views = Views((altered(centre.pretexts[0]),), centre.size, 0, device.channels_last)
    plan = [Indices(torch.zeros_like(part), part) for part in places[chosen].split(64)]
    copies = []
    with evaluating(encoder):
        for _, (view,) in Loader(images, views, device.device).batches(plan):
            with device.autocast():
                copies.append(encoder(view).float().cpu())
    cosines = F.cosine_similarity(values[chosen].float(), torch.cat(copies))
    return float(cosines.quantile(1 - FOUND))


def find_candidates(
    values: Tensor, test: Tensor, threshold: float, device: torch.device, index: Index = "auto"
) -> list[tuple[int, int, float]]:
    """Pairs of features (n, d) with a cosine of at least the threshold, among the `NEIGHBOURS` nearest of each.

    Those of a test image among the training images are searched for themselves, so that its many copies in the test
    set do not hide them. Called on all ranks, which hold the same features and share the queries.

    Args:
        test: bool (n,), which are test images.

    Returns (first, second, cosine) with first < second, each pair once, ascending.
    """
    everything = torch.arange(len(values))
    train, tests = everything[~test], everything[test]
    searches = [(everything, everything)]
    if len(train) and len(tests):
        searches.append((tests, train))
    found: dict[tuple[int, int], float] = {}
    for queries, bank in searches:
        own = local(F.pad(queries, (0, -len(queries) % world_size()), value=-1))
        own = own[own >= 0]
        neighbours = neighbours_by(index, values[own].to(device), NEIGHBOURS, len(bank), own)
        for part in bank.split(4096):
            neighbours.add(values[part], part)
        cosines, places = neighbours.result()
        row, column = (cosines >= threshold).nonzero(as_tuple=True)
        some = zip(own[row].tolist(), places[row, column].tolist(), cosines[row, column].tolist(), strict=True)
        for i, j, cosine in some:
            found.setdefault((min(i, j), max(i, j)), cosine)
    merged: dict[tuple[int, int], float] = {}
    for share in gather_objects(found):
        for pair, cosine in share.items():
            merged.setdefault(pair, cosine)
    return [(i, j, cosine) for (i, j), cosine in sorted(merged.items())]


def confirm(
    candidates: list[tuple[int, int, float]],
    pixels: Callable[[int], Tensor],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Pair]:
    """The candidates with the correlation of their pixels; each image is decoded once.

    Args:
        pixels: the image at a place, uint8 (3, h, w); where it raises UnreadableImageError, the correlation is -1.
        progress: wraps the iteration over pieces of the images' numbers.
    """
    if not candidates:
        return []
    places = sorted({place for i, j, _ in candidates for place in (i, j)})
    thumbs = torch.zeros(len(places), THUMB, THUMB, dtype=torch.uint8)
    broken: set[int] = set()

    def load(number: int) -> None:
        try:
            thumbs[number] = thumb(pixels(places[number]))
        except UnreadableImageError:
            broken.add(places[number])

    with ThreadPoolExecutor() as pool:
        for piece in progress(torch.arange(len(places)).split(256)):
            list(pool.map(load, piece.tolist()))
    number = {place: i for i, place in enumerate(places)}
    pairs = torch.tensor([[number[i], number[j]] for i, j, _ in candidates])
    found = torch.cat([correlations(thumbs[i], thumbs[j]) for i, j in (part.T for part in pairs.split(_PAIRS))])
    return [
        Pair(i, j, cosine, -1.0 if broken & {i, j} else correlation)
        for (i, j, cosine), correlation in zip(candidates, found.tolist(), strict=True)
    ]


def components(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected components of a graph that have an edge: each ascending, the largest first."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]
            node = above
        return node

    for i, j in pairs:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    members: dict[int, list[int]] = {}
    for node in sorted(parent):
        members.setdefault(root(node), []).append(node)
    return sorted(members.values(), key=lambda group: (-len(group), group))
