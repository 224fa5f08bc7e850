"""What every format becomes: images in files, each with its annotated objects."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco.data.formats.decode import plain_jpeg_size, read_image
from moco.runtime.errors import UserError, did_you_mean, one_line
from moco.transfer.detection.instances import Polygons, Target, Truth
from moco.transfer.detection.masks import Rle, decode_rle, draw_polygons, polygon_area, run_lengths
from moco.transfer.detection.transforms import clip_target, nonempty

log = logging.getLogger("moco")


@dataclass(slots=True)
class Object:
    """One annotated object.

    Attributes:
        box: float64 (4,), as `Target` has them.
        label: its class, from 0.
        difficult, crowd, area: as in `Truth`; the area is None where it is not annotated.
        mask: its polygons or run lengths, or None.
        keypoints: float64 (points, 3), as in `Target`, or None.
    """

    box: np.ndarray
    label: int
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    mask: Polygons | Rle | None = None
    keypoints: np.ndarray | None = None


@dataclass(slots=True)
class Annotated:
    """One image: its file, its height and width, its objects. Without a size, coordinates are shares of the sides."""

    path: Path
    size: tuple[int, int] | None
    objects: list[Object] = field(default_factory=list)


class Skipped:
    """Counts what is left out, by kind, and names the first of each."""

    def __init__(self, source: Path | str) -> None:
        self.source = source
        self.counts: dict[str, int] = defaultdict(int)
        self._first: dict[str, str] = {}

    def add(self, kind: str, where: Path | str) -> None:
        self.counts[kind] += 1
        self._first.setdefault(kind, str(where))

    def log(self) -> None:
        for kind, count in self.counts.items():
            log.warning("%s: skipped %d %s (the first: %s)", self.source, count, kind, self._first[kind])

    def box(self, box: np.ndarray, height: float, width: float, where: Path | str) -> bool:
        """Whether a box is none: not finite, reversed, without area, or outside an image of this size; then counted."""
        x1, y1, x2, y2 = box.tolist()
        kind = ""
        if not np.isfinite(box).all():
            kind = "boxes that are not finite"
        elif x2 < x1 or y2 < y1:
            kind = "reversed boxes"
        elif x2 == x1 or y2 == y1:
            kind = "boxes without area"
        elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            kind = "boxes outside their image"
        if kind:
            self.add(kind, where)
        return bool(kind)


class AnnotatedImages:
    """A `DetectionSet` of files.

    Attributes:
        classes: their names.
        flipped_keypoints: which keypoint comes in the place of each in the mirror, or None.
    """

    def __init__(
        self,
        images: list[Annotated],
        classes: list[str],
        flipped_keypoints: list[int] | None = None,
        masks: bool | None = None,
    ) -> None:
        self.classes, self.flipped_keypoints = classes, flipped_keypoints
        self._images = images
        self._masks = any(o.mask is not None for image in images for o in image.objects) if masks is None else masks
        points = (o.keypoints for image in images for o in image.objects if o.keypoints is not None)
        self._points = len(next(points, ()))

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The path of the image."""
        return str(self._images[index].path)

    def subset(self, index: Iterable[int]) -> "AnnotatedImages":
        """The images of these numbers, in this order."""
        images = self._images
        return AnnotatedImages([images[i] for i in index], self.classes, self.flipped_keypoints, self._masks)

    def with_objects(self, keypoints: bool = False) -> Tensor:
        """int64 (n,): the images that have an object to train on, and if wanted an annotated keypoint."""
        found = [
            any(not o.crowd for o in image.objects) and (not keypoints or any(map(_has_keypoint, image.objects)))
            for image in self._images
        ]
        return torch.tensor(found, dtype=torch.bool).nonzero()[:, 0]

    def image(self, index: int) -> Tensor:
        """uint8 (3, height, width). Raises UserError if it cannot be read, or is not of the annotated size."""
        entry = self._images[index]
        pixels = read_image(entry.path)
        size = int(pixels.shape[1]), int(pixels.shape[2])
        if entry.size is not None and entry.size != size:
            turned = entry.size == size[::-1]
            hint = ": a camera's EXIF turns it: annotate it upright, or turn the pixels and drop the EXIF"
            raise UserError(
                f"{entry.path}: has {size[1]}x{size[0]} pixels, and its annotation is of "
                f"{entry.size[1]}x{entry.size[0]}{hint if turned else ': annotate it anew, or restore the image'}"
            )
        return pixels

    def target(self, index: int) -> Target:
        """The objects to train on: boxes clipped to the image, without crowds and what is empty."""
        size = self._size(index)
        whole = self._target(index, size, [o for o in self._images[index].objects if not o.crowd])
        return nonempty(clip_target(whole, *size))

    def truth(self, index: int) -> Truth:
        """All objects as annotated, crowds among them."""
        size, objects = self._size(index), self._images[index].objects
        target = self._target(index, size, objects)
        scale = 1.0 if self._images[index].size else size[0] * size[1]
        area = [o.area if o.area is not None else scale * _area(o) for o in objects]
        difficult, crowd = ([getattr(o, name) for o in objects] for name in ("difficult", "crowd"))
        return Truth(
            target,
            torch.tensor(difficult, dtype=torch.bool),
            torch.tensor(crowd, dtype=torch.bool),
            torch.tensor(area, dtype=torch.float64),
            size,
        )

    def _size(self, index: int) -> tuple[int, int]:
        return self._images[index].size or image_size(self._images[index].path)

    def _target(self, index: int, size: tuple[int, int], objects: list[Object]) -> Target:
        unit = np.array([1.0, 1.0]) if self._images[index].size else np.array([size[1], size[0]], dtype=np.float64)
        boxes = np.array([o.box for o in objects]).reshape(-1, 4) * np.tile(unit, 2)
        keypoints = None
        if self._points:
            none = np.zeros((self._points, 3))
            rows = [none if o.keypoints is None else o.keypoints for o in objects]
            keypoints = torch.from_numpy(np.array(rows).reshape(-1, self._points, 3)).float()
        masks = _masks([o.mask for o in objects], size, unit) if self._masks else None
        classes = torch.tensor([o.label for o in objects], dtype=torch.int64)
        return Target(torch.from_numpy(boxes).float(), classes, masks, keypoints)


def _masks(masks: list[Polygons | Rle | None], size: tuple[int, int], unit: np.ndarray) -> list[Polygons] | Tensor:
    """Polygons, or bitmaps if any of the masks is given as run lengths."""
    polygons = [[p * np.tile(unit, len(p) // 2) for p in mask] if isinstance(mask, list) else [] for mask in masks]
    if not any(isinstance(mask, dict) for mask in masks):
        return polygons
    drawn = draw_polygons(polygons, *size)
    for row, mask in enumerate(masks):
        if isinstance(mask, dict):
            drawn[row] = decode_rle(mask)
    return drawn


def _has_keypoint(annotated: Object) -> bool:
    return annotated.keypoints is not None and bool((annotated.keypoints[:, 2] > 0).any())


def _area(annotated: Object) -> float:
    if isinstance(annotated.mask, list):
        return polygon_area(annotated.mask)
    if annotated.mask is not None:
        return float(run_lengths(annotated.mask["counts"])[1::2].sum())
    x1, y1, x2, y2 = annotated.box.tolist()
    return float((x2 - x1) * (y2 - y1))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image in a file, upright. Raises UserError."""
    try:
        size = plain_jpeg_size(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    if size is None:
        pixels = read_image(path)
        size = int(pixels.shape[1]), int(pixels.shape[2])
    return size


def agree_on_masks(images: list[Annotated], skipped: Skipped) -> None:
    """Either all objects have masks or none: in place, whichever are fewer give way; crowds may do without."""
    objects = [(image, o) for image in images for o in image.objects if not o.crowd]
    masked = sum(o.mask is not None for _, o in objects)
    wanted = masked > 0 and 2 * masked >= len(objects)
    for image, annotated in objects:
        if wanted and annotated.mask is None:
            skipped.add("objects without a mask, as most have one", image.path)
        elif not wanted and annotated.mask is not None:
            skipped.add("masks, as most objects have none", image.path)
    for image in images:
        if wanted:
            image.objects = [o for o in image.objects if o.mask is not None or o.crowd]
        for annotated in image.objects:
            annotated.mask = annotated.mask if wanted else None


def class_number(name: str, classes: list[str], where: Path | str) -> int:
    """The place of a class among those known. Raises UserError if it is none of them."""
    try:
        return classes.index(name)
    except ValueError as error:
        known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise UserError(
            f"{where}: unknown class {name!r}{did_you_mean(name, classes)} (the classes are {known})"
        ) from error


def with_test(train: AnnotatedImages, test: AnnotatedImages | None) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    """Training and test images: where there are none to test on, every tenth of at least twenty is kept for it."""
    if test is None and len(train) >= 20:
        held_out = [i % 10 == 9 for i in range(len(train))]
        log.info("no test images: every tenth of %d training images is kept for it", len(train))
        test = train.subset(i for i, held in enumerate(held_out) if held)
        train = train.subset(i for i, held in enumerate(held_out) if not held)
    return train, test
