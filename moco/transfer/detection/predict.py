"""Detections of anyone's images: each drawn, and all as COCO's JSON."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from moco.data.formats.decode import read_image
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.evaluation.coco import detected
from moco.transfer.detection.inference import infer
from moco.transfer.detection.instances import Detections
from moco.transfer.detection.pictures import draw_objects
from moco.transfer.images import file_names, make_empty, save_picture

log = logging.getLogger("moco")

_SIDES = (640, 1600)
"""Of a drawn image, its longer side in pixels: smaller ones are enlarged, larger ones shrunk."""


class Predicted(NamedTuple):
    """How many images were drawn, how many could not be read, and the JSON's path."""

    images: int
    unreadable: int
    json: Path


def predict(
    detector: Detector,
    classes: list[str],
    paths: Sequence[Path],
    out: Path,
    device: Device,
    *,
    side: int,
    maximum: int = 1333,
    threshold: float = 0.5,
    batch: int = 1,
    workers: int | None = 0,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> Predicted:
    """Detects in images, draws each into the folder `out`, and writes detections.json there; on one rank.

    The JSON is COCO's, with images (their paths as given), categories (numbered from 1) and annotations, which have
    scores too; masks are run lengths. It holds what is drawn and the detections of scores down to 0.05. Broken images
    are named in the log and skipped.

    Args:
        classes: their names.
        paths: of the images; `image_paths` finds those of folders.
        side, maximum, batch, workers: as in `infer`.
        threshold: detections with a lower score are not drawn.
        progress: wraps the numbers of the images.

    Raises UserError if `out` is there and not an empty folder, or if no image can be read.
    """
    make_empty(out)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    errors: list[str] = []
    names = file_names(paths)

    def broken(number: int, error: str) -> None:
        log.warning("skipped: %s", error)
        errors.append(error)

    numbers = progress(list(range(len(paths))))
    sizes: dict[str, int] = {"side": side, "maximum": maximum, "batch": batch}
    for number, image, found in infer(detector, _Reader(paths), numbers, device, broken, workers=workers, **sizes):
        drawn = draw_objects(image, found, classes, threshold, min(max(_SIDES[0], *image.shape[1:]), _SIDES[1]))
        save_picture(drawn, out / names[number])
        size = int(image.shape[1]), int(image.shape[2])
        images.append({"id": number + 1, "file_name": str(paths[number]), "height": size[0], "width": size[1]})
        annotations += _annotations(found, size, number + 1, len(annotations) + 1)
    if not images:
        raise UserError(f"none of {len(paths)} images can be read: {errors[0] if errors else 'there is none'}")
    categories = [{"id": c, "name": name} for c, name in enumerate(classes, 1)]
    path = out / "detections.json"
    text = json.dumps({"images": images, "categories": categories, "annotations": annotations}) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return Predicted(len(images), len(errors), path)


class _Reader:
    """An image, and the same once more, as it is drawn on."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.paths[number])
        return image, image


def _annotations(found: Detections, size: tuple[int, int], image: int, first: int) -> list[dict[str, Any]]:
    """COCO's annotations of an image, numbered from `first`."""
    rows = detected(found, size)
    areas = found.masks.flatten(1).sum(1).tolist() if found.masks is not None else _areas(found.boxes)
    for number, (row, area) in enumerate(zip(rows, areas, strict=True), first):
        row |= {"id": number, "image_id": image, "category_id": row["category_id"] + 1, "area": area, "iscrowd": 0}
        if "keypoints" in row:
            # A reader expects visibility where detections have scores.
            row["keypoint_scores"] = row["keypoints"][2::3]
            row["keypoints"] = [2 if i % 3 == 2 else value for i, value in enumerate(row["keypoints"])]
            row["num_keypoints"] = len(row["keypoint_scores"])
    return rows


def _areas(boxes: Tensor) -> list[float]:
    areas: list[float] = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
    return areas
