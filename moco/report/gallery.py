"""The pictures that show what an encoder has learned: views, neighbours, pairs, a map."""

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from moco.data import ImageSet, Indices, Loader, Source
from moco.evaluation import encode, nearest
from moco.report.map import NEIGHBOURS, draw_map
from moco.report.pictures import shown
from moco.runtime.device import Device
from moco.views import CentreCrop, Views

QUERIES, SHOWN_NEIGHBOURS = 12, 8
VIEWED, SHOWN_VIEWS = 256, 18
"""Images of which two views are compared, and how many of them are shown as they come."""
EXTREMES = 6
"""Pairs shown of the most, and of the least, similar."""
BANK = 5
"""Training images among which neighbours are sought, for each point of the map."""
LINKS = 5
"""Nearest neighbours that the map shows of a point."""
_SIDE, _THUMB, _SMALL_THUMB, _MANY = 96, 48, 32, 4000
"""Pixels of a picture, of one on the map, of one on a map of more points than so many."""

Progress = Callable[[str], Callable[[Any], Any]]
"""Given what is done, wraps the iteration over it."""


class Picture(NamedTuple):
    uri: str
    name: str
    label: int | None


class Pair(NamedTuple):
    first: Picture
    second: Picture
    cosine: float


class Query(NamedTuple):
    picture: Picture
    neighbours: list[tuple[Picture, float]]


@dataclass
class Gallery:
    views: list[Pair]
    """Two views of an image each."""
    queries: list[Query]
    searched: str
    """Which images were searched for which."""
    extremes: dict[str, list[Pair]]
    map: dict[str, Any]
    """x, y in 0..1, labels, classes, names, links (the nearest points), sheet of thumbnails, its side and columns."""

    @property
    def labelled(self) -> bool:
        """Whether queries and neighbours have classes."""
        return any(query.picture.label is not None for query in self.queries)


@dataclass
class GalleryMaker:
    """An encoder, the images it is shown, and how.

    Attributes:
        views: the pretext task, as the run had it.
        points: how many images are placed on the map.
    """

    encoder: nn.Module
    source: Source
    centre: CentreCrop
    views: Views
    device: Device
    points: int
    workers: int | None
    progress: Progress

    def make(self) -> Gallery:
        """All the pictures. Raises UserError when too many images cannot be read."""
        images = self.source.labelled_train
        values, places = self.encode(images, images.sample(BANK * self.points), "features")
        bank, points = images.subset(places), min(self.points, len(values))
        cosines, neighbours = nearest(values[:points], values[:points], NEIGHBOURS, torch.arange(points))
        views, extremes = self._views()
        like = zip(cosines[:, 0].tolist(), neighbours[:, 0].tolist(), strict=True) if points > 1 else ()
        extremes["Different images, most alike"] = self._pairs(bank, like)
        # The most similar to the opposite of a feature are the least similar to it.
        unlike, others = nearest(-values[:points], values[:points], 1)
        pairs = zip(unlike.neg()[:, 0].tolist(), others[:, 0].tolist(), strict=True)
        extremes["Different images, least alike"] = self._pairs(bank, pairs, reverse=True)
        queries, searched = self._queries(bank, values, len(images))
        mapped = self._map(bank.subset(torch.arange(points)), values[:points], neighbours)
        return Gallery(views, queries, searched, extremes, mapped)

    def encode(self, images: ImageSet, places: Tensor, what: str) -> tuple[Tensor, Tensor]:
        """Features of the images at some places that can be read, and where these are."""
        progress = self.progress(what)
        subset = images.subset(places)
        values, read = encode(self.encoder, subset, self.centre, self.device, 256, self.workers, progress)
        return values, places[read]

    def _views(self) -> tuple[list[Pair], dict[str, list[Pair]]]:
        """Pairs of views of training images, as the first epoch had them, and the most and least similar ones."""
        places = self.source.train.sample(VIEWED)
        loader = Loader(self.source.train, self.views, self.device.device, self.workers)
        plan = [Indices(torch.zeros_like(part), part) for part in places.split(64)]
        pairs: list[Pair] = []
        for index, views in loader.batches(self.progress("views")(plan)):
            first, second = (self._features(view) for view in views)
            cosines = F.cosine_similarity(first, second).tolist()
            sides = [shown(view.cpu(), self.views.pretexts[j]) for j, view in enumerate(views)]
            for place, cosine, *pixels in zip(index.tolist(), cosines, *sides, strict=True):
                one, two = (self._picture(self.source.train, place, picture) for picture in pixels)
                pairs.append(Pair(one, two, cosine))
        ordered = sorted(pairs, key=lambda pair: pair.cosine)
        extremes = {
            "Two views of an image, least alike": ordered[:EXTREMES],
            "Two views of an image, most alike": ordered[::-1][:EXTREMES],
        }
        return pairs[:SHOWN_VIEWS], extremes

    @torch.no_grad()
    def _features(self, view: Tensor) -> Tensor:
        training = self.encoder.training
        self.encoder.eval()
        with self.device.autocast():
            features: Tensor = self.encoder(view).float()
        self.encoder.train(training)
        return features

    def _pairs(self, images: ImageSet, found: Iterable[tuple[float, int]], reverse: bool = False) -> list[Pair]:
        """The pairs (image i, the other that is found for it) of the highest cosine, or lowest; an image comes once."""
        ordered = sorted(((cosine, i, j) for i, (cosine, j) in enumerate(found)), reverse=not reverse)
        chosen: list[tuple[float, int, int]] = []
        used: set[int] = set()
        for cosine, i, j in ordered:
            if len(chosen) < EXTREMES and i != j and not used & {i, j}:
                chosen.append((cosine, i, j))
                used |= {i, j}
        pictures = self._pictures(images, [place for _, i, j in chosen for place in (i, j)])
        return [Pair(a, b, pair[0]) for pair, a, b in zip(chosen, pictures[::2], pictures[1::2], strict=True)]

    def _queries(self, bank: ImageSet, values: Tensor, total: int) -> tuple[list[Query], str]:
        """Test images, or training images where there are no others, and their nearest training images."""
        test = self.source.test if self.source.test is None else self.source.labelled_test
        among = f"{len(bank):,} of {total:,} training images" if len(bank) < total else f"{total:,} training images"
        if test is None:
            searched, place = bank, torch.tensor(_varied(bank.labels, len(bank)))
            features, own = values[place], place
        else:
            drawn = test.sample(20 * QUERIES)
            labels = None if test.labels is None else test.labels[drawn]
            features, place = self.encode(test, drawn[_varied(labels, len(drawn))], "queries")
            searched, own = test, None
        kind = "training images, themselves left out," if test is None else "test images"
        cosines, index = nearest(values, features, SHOWN_NEIGHBOURS, own)
        pictures = self._pictures(searched, place.tolist())
        found = self._pictures(bank, index.flatten().tolist())
        rows = [found[i * index.shape[1] : (i + 1) * index.shape[1]] for i in range(len(pictures))]
        queries = [
            Query(picture, list(zip(row, cosine, strict=True)))
            for picture, row, cosine in zip(pictures, rows, cosines.tolist(), strict=True)
        ]
        return queries, f"{len(queries)} {kind} and their nearest of {among}."

    def _map(self, images: ImageSet, values: Tensor, neighbours: Tensor) -> dict[str, Any]:
        x, y = _in_unit_square(draw_map(values, neighbours, progress=self.progress("map"))).T.tolist()
        n = len(images)
        side = min(self.centre.size, _THUMB if n <= _MANY else _SMALL_THUMB)
        columns = math.ceil(math.sqrt(n))
        sheet = Image.new("RGB", (columns * side, -(-n // columns) * side))
        for i, pixels in enumerate(self._pixels(images, torch.arange(n), self.progress("thumbnails"))):
            sheet.paste(_resized(pixels, side), (i % columns * side, i // columns * side))
        return {
            "x": x,
            "y": y,
            "labels": None if images.labels is None else images.labels.tolist(),
            "classes": _classes(self.source, images.labels),
            "names": [_name(images, i) for i in range(n)],
            "links": neighbours[:, :LINKS].tolist(),
            "sheet": _uri(sheet, 75),
            "side": side,
            "columns": columns,
        }

    def _pictures(self, images: ImageSet, places: list[int]) -> list[Picture]:
        """As the encoder saw them in evaluation."""
        pixels = self._pixels(images, torch.tensor(places, dtype=torch.int64), iter)
        return [self._picture(images, place, picture) for place, picture in zip(places, pixels, strict=True)]

    def _pixels(
        self, images: ImageSet, places: Tensor, progress: Callable[[list[Indices]], Iterable[Indices]]
    ) -> Iterable[np.ndarray]:
        if len(places) == 0:
            return
        plan = [Indices(torch.zeros_like(part), part) for part in places.split(64)]
        # A few images are decoded sooner than a process is started.
        loader = Loader(images, self.centre, torch.device("cpu"), self.workers if len(places) > 256 else 0)
        for batch in loader.batches(progress(plan)):
            yield from shown(batch.views[0], self.centre.pretexts[0])

    def _picture(self, images: ImageSet, place: int, pixels: np.ndarray) -> Picture:
        label = None if images.labels is None else int(images.labels[place])
        name = _name(images, place) if label is None else _class(self.source, label)
        return Picture(_uri(_resized(pixels, _SIDE), 88), name, label)


def _in_unit_square(places: Tensor) -> Tensor:
    """Places on a map in 0..1, to 4 digits; the few that lie far from all others are moved to the edge."""
    low, high = places.quantile(torch.tensor([0.002, 0.998]), dim=0)
    inside: Tensor = ((places - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return inside.double().mul(1e4).round().div(1e4)


def _varied(labels: Tensor | None, n: int) -> list[int]:
    """QUERIES of n images: one of each class before a second of any."""
    if labels is None:
        return list(range(min(n, QUERIES)))
    seen: Counter[int] = Counter()
    order = []
    for place, label in enumerate(labels.tolist()):
        order.append((seen[label], place))
        seen[label] += 1
    return [place for _, place in sorted(order)[:QUERIES]]


def _class(source: Source, label: int) -> str:
    return source.classes[label] if source.classes else f"class {label}"


def _classes(source: Source, labels: Tensor | None) -> list[str] | None:
    return None if labels is None else [_class(source, i) for i in range(source.num_classes)]


def _name(images: ImageSet, place: int) -> str:
    return Path(images.name(place)).name


def _resized(pixels: np.ndarray, side: int) -> Image.Image:
    """Values in 0..1, (h, w, 3), as a picture with no side longer than that."""
    picture = Image.fromarray((255 * pixels).round().astype(np.uint8))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _uri(picture: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
