"""One protocol for every set of annotated images, and one function that opens them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from moco.data.sources.spec import split_spec
from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.coco import open_coco
from moco.transfer.detection.annotations.shapes import open_shapes
from moco.transfer.detection.annotations.voc import open_voc
from moco.transfer.detection.annotations.yolo import open_yolo
from moco.transfer.detection.config import KINDS
from moco.transfer.detection.instances import Target, Truth


class DetectionSet(Protocol):
    """Annotated images, numbered from 0.

    Attributes:
        classes: their names.
        flipped_keypoints: which keypoint comes in the place of each in the mirror; None without named keypoints.
    """

    classes: list[str]
    flipped_keypoints: list[int] | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image: its path."""
        ...

    def image(self, index: int) -> Tensor:
        """uint8 (3, height, width). Raises UserError if it cannot be read."""
        ...

    def target(self, index: int) -> Target:
        """The objects to train on: clipped to the image, without crowds and what is empty."""
        ...

    def truth(self, index: int) -> Truth:
        """All objects as annotated, for metrics."""
        ...

    def with_objects(self, keypoints: bool = False) -> Tensor:
        """int64 (n,): the images that have an object to train on, and if wanted an annotated keypoint."""
        ...

    def subset(self, index: Iterable[int]) -> "DetectionSet":
        """The images of these numbers, in this order."""
        ...


def open_detection(
    spec: str, *, keypoints: bool = False, masks: bool = True, size: int = 128
) -> tuple[DetectionSet, DetectionSet | None]:
    """Training and test images; of a set without test images every tenth of at least twenty is kept for it.

    Args:
        spec: voc:PATH, coco:PATH, yolo:PATH or shapes.
        keypoints: of COCO's files those with keypoints.
        masks: of COCO's and YOLO's objects, where most have one: those without are left out. False: they are kept.
        size: the side in pixels of what is drawn.

    Raises UserError if there is no such set, or nothing usable in it; what is left out of it is counted in the log.
    """
    spellings = {name: name if name == "shapes" else f"{name}:PATH" for name in KINDS}
    name, argument = split_spec(spec, spellings, "set of annotated images")
    if name == "shapes":
        return open_shapes(size)
    path = Path(argument).expanduser()
    if not path.exists():
        raise UserError(f"--data {spec}: no such path: {argument}")
    if name == "coco":
        return open_coco(path, keypoints, masks)
    return open_voc(path) if name == "voc" else open_yolo(path, masks)
