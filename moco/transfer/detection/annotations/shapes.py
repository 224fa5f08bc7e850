"""Drawn images with several objects each, boxes and masks among them: the data set `shapes` on common grounds."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from moco.data.sources import shapes
from moco.runtime.errors import UserError
from moco.transfer.detection.instances import Target, Truth
from moco.views.counter_rng import uniform

TRAIN, TEST = 10_000, 2_000
OBJECTS = 4
"""At most, in an image; from 1 on each number is as likely."""
DIAMETER = (0.3, 0.6)
"""Of an object's frame, as a share of the image's side."""
VISIBLE = 0.3
"""An object of which less is left behind others is not annotated."""
_STREAM = 0x6401
"""Of random numbers that neither `shapes` nor the transforms draw from."""


class DrawnImages:
    """A `DetectionSet` that draws its images when they are asked for: each a pure function of its number.

    Attributes:
        classes: the ten outlines.
        flipped_keypoints: None, there are none.
    """

    flipped_keypoints: list[int] | None = None

    def __init__(self, index: Iterable[int], size: int = 128, seed: int = 0) -> None:
        if size < 32:
            raise UserError(f"shapes with several objects are drawn from 32 pixels a side, not {size}")
        self.classes = list(shapes.CLASSES)
        self._index, self._size, self._seed = list(index), size, seed

    def __len__(self) -> int:
        return len(self._index)

    def name(self, index: int) -> str:
        return f"shapes {self._index[index]}"

    def subset(self, index: Iterable[int]) -> "DrawnImages":
        """The images of these numbers, in this order."""
        return DrawnImages([self._index[i] for i in index], self._size, self._seed)

    def with_objects(self, keypoints: bool = False) -> Tensor:
        """int64 (n,): all images, as each has an object; with keypoints none."""
        return torch.arange(0 if keypoints else len(self))

    def image(self, index: int) -> Tensor:
        """uint8 (3, size, size)."""
        return self._draw(index)[0]

    def target(self, index: int) -> Target:
        """The objects, their masks as far as they can be seen."""
        return self._draw(index)[1]

    def truth(self, index: int) -> Truth:
        target = self.target(index)
        assert isinstance(target.masks, Tensor)
        none = torch.zeros(len(target), dtype=torch.bool)
        return Truth(target, none, none, target.masks.sum((1, 2)).double(), (self._size, self._size))

    def _draw(self, index: int) -> tuple[Tensor, Target]:
        return draw(self._index[index], self._size, self._seed)


@lru_cache(maxsize=1024)  # of 100 MB at 128 pixels: an image and its objects are wanted one after the other, and again
def draw(number: int, size: int, seed: int) -> tuple[Tensor, Target]:
    """An image and its objects, one over another on the ground of its number; the last is whole. Not to be changed."""
    canvas = shapes.draw_backgrounds(torch.tensor([number]), size, seed)[0]
    random = uniform(seed, torch.tensor([number]), 1 + 3 * OBJECTS, stream=_STREAM)[0].tolist()
    masks: list[Tensor] = []
    labels, areas = [], []
    for k in range(1 + int(random[0] * OBJECTS)):
        share, right, down = random[1 + 3 * k : 4 + 3 * k]
        side = round(size * (DIAMETER[0] + share * (DIAMETER[1] - DIAMETER[0])))
        drawing = shapes.draw(torch.tensor([number * OBJECTS + k]), side, seed)
        left, top = int(right * (size - side + 1)), int(down * (size - side + 1))
        place = slice(top, top + side), slice(left, left + side)
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[place] = drawing.masks[0]
        canvas[:, mask] = drawing.images[0][:, drawing.masks[0]]
        masks = [earlier & ~mask for earlier in masks] + [mask]
        labels.append(int(drawing.labels[0]))
        areas.append(int(mask.sum()))
    kept = [k for k, mask in enumerate(masks) if mask.sum() >= VISIBLE * areas[k]]
    visible = torch.stack([masks[k] for k in kept])
    return canvas, Target(shapes.boxes_of(visible), torch.tensor([labels[k] for k in kept]), visible)


def open_shapes(size: int = 128, seed: int = 0) -> tuple[DrawnImages, DrawnImages]:
    """Training and test images, side in pixels. Raises UserError below 32."""
    return DrawnImages(range(TRAIN), size, seed), DrawnImages(range(TRAIN, TRAIN + TEST), size, seed)
