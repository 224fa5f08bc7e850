"""The objects of an image: as annotated, and as detected. Boxes: x1, y1, x2, y2 in pixels, continuous coordinates."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

Polygons = list[np.ndarray]
"""The outline of one object: polygons, each float64 (2 * points,) as x, y, x, y, ..."""


@dataclass
class Target:
    """The annotated objects of one image.

    Attributes:
        boxes: float32 (n, 4).
        classes: int64 (n,), from 0.
        masks: the polygons of each object, or bool (n, height, width); None: there are boxes alone.
        keypoints: float32 (n, points, 3) as x, y and visibility (0: not annotated, 1: hidden, 2: visible), or None.
    """

    boxes: Tensor
    classes: Tensor
    masks: list[Polygons] | Tensor | None = None
    keypoints: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class Truth:
    """All that is annotated in one image, as metrics need it.

    Attributes:
        target: the objects, crowds among them.
        difficult: bool (n,), VOC's: neither missed nor found.
        crowd: bool (n,), COCO's: a region of many, left out of training.
        area: float64 (n,), in pixels: of the mask where there is one.
        size: height and width of the image.
    """

    target: Target
    difficult: Tensor
    crowd: Tensor
    area: Tensor
    size: tuple[int, int]


@dataclass
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: float32 (n, 4).
        scores: float32 (n,), 0 to 1.
        classes: int64 (n,), from 0.
        masks: bool (n, height, width), or None.
        keypoints: float32 (n, points, 3) as x, y and score, or None.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)
