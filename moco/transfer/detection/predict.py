"""Detections of anyone's images: each drawn, and all as COCO's JSON."""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from moco.data.formats.decode import read_image
from moco.data.sources.folder import SUFFIXES
from moco.runtime.device import Device
from moco.runtime.errors import UserError, one_line
from moco.runtime.files import write_whole
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.evaluation.coco import detected
from moco.transfer.detection.inference import infer
from moco.transfer.detection.instances import Detections
from moco.transfer.detection.pictures import draw_objects

log = logging.getLogger("moco")

_SIDES = (640, 1600)
"""Of a drawn image, its longer side in pixels: smaller ones are enlarged, larger ones shrunk."""


class Predicted(NamedTuple):
    """How many images were drawn, how many could not be read, and the JSON's path."""

    images: int
    unreadable: int
    json: Path


def image_paths(given: Iterable[Path]) -> list[Path]:
    """Files as they are, and the images in folders and the folders in them, by name. Raises UserError if there is none.

    A file that is given need not have an image's suffix.
    """
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise UserError(f"{path}: no such image or folder of images")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no images in it ({', '.join(sorted(SUFFIXES))})")
        found += inside
    if not found:
        raise UserError("no images are given")
    return found


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
    workers: int = 0,
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
    _make_empty(out)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    errors: list[str] = []
    names = list(_names(paths))

    def broken(number: int, error: str) -> None:
        log.warning("skipped: %s", error)
        errors.append(error)

    numbers = progress(list(range(len(paths))))
    settings: dict[str, int] = {"side": side, "maximum": maximum, "batch": batch, "workers": workers}
    for number, image, found in infer(detector, _Reader(paths), numbers, device, broken, **settings):
        drawn = draw_objects(image, found, classes, threshold, min(max(_SIDES[0], *image.shape[1:]), _SIDES[1]))
        _save(drawn, out / names[number])
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


def _make_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already, and not an empty folder: choose another one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be created: {one_line(error)}") from error


def _names(paths: Sequence[Path]) -> Iterator[str]:
    """Of the drawn images: as the images', numbered where several are called alike."""
    taken: set[str] = set()
    for path in paths:
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        stems = itertools.chain([path.stem], (f"{path.stem}-{number}" for number in itertools.count(2)))
        taken.add(name := next(stem + suffix for stem in stems if stem + suffix not in taken))
        yield name


def _save(picture: Image.Image, path: Path) -> None:
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    write_whole(path, lambda file: picture.save(file, kind, **({} if kind == "PNG" else {"quality": 90})))
