"""COCO's JSON: images, categories and annotations in one file; polygons, run lengths, crowds and keypoints."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from moco.runtime.errors import UserError, one_line
from moco.transfer.detection.annotations.annotated import (
    Annotated,
    AnnotatedImages,
    Object,
    Skipped,
    agree_on_masks,
    class_number,
    image_size,
    with_test,
)
from moco.transfer.detection.instances import Polygons
from moco.transfer.detection.masks import Rle, checked_runs

_TRAIN = re.compile(r"(^|[^a-z])train")
_TEST = re.compile(r"(^|[^a-z])(val|valid|validation|test)([^a-z]|$)")


def open_coco(
    path: Path, keypoints: bool = False, masks: bool = True
) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    """Training and test images.

    Args:
        path: a JSON file, whose name may have train in it where its neighbour for tests has val, valid or test; or a
            folder: annotations/instances_train2017.json and instances_val2017.json as COCO's, train.json and val.json,
            or train/_annotations.coco.json and valid/_annotations.coco.json.
        keypoints: take person_keypoints_*.json and not instances_*.json where a folder has both.
        masks: of the objects, where most have one: those without are left out. False: boxes alone, of all objects.

    Images lie in the folder that their file is named after, in `images`, or beside it. Keypoints are moved by half a
    pixel to continuous coordinates. Categories are numbered from 0 in the order of their ids.

    Raises UserError if nothing is found, or a file is damaged or has annotations of unknown categories.
    """
    train_file, test_file = (path, _neighbour(path)) if path.is_file() else _find(path, keypoints)
    train = read_coco(train_file, masks=masks)
    test = None if test_file is None else read_coco(test_file, train.classes, masks)
    return with_test(train, test)


def _find(folder: Path, keypoints: bool) -> tuple[Path, Path | None]:
    """The annotations to train on and to test on, if there are any."""
    files = sorted(
        file for below in ("*.json", "annotations/*.json", "*/_annotations.coco.json") for file in folder.glob(below)
    )
    other = "instances_" if keypoints else "person_keypoints_"
    files = [file for file in files if not file.name.startswith(("captions_", "image_info_", "stuff_", "panoptic_"))]
    files = [file for file in files if not file.name.startswith(other)] or files
    train = [file for file in files if _TRAIN.search(_split(file))]
    if not train and len(files) == 1:
        return files[0], None
    if len(train) != 1:
        found = ", ".join(str(file.relative_to(folder)) for file in train or files) or "no .json"
        raise UserError(f"{folder}: which file of COCO's JSON to train on is not clear ({found}): give it as coco:FILE")
    return train[0], _neighbour(train[0], files)


def _split(file: Path) -> str:
    """What a file's name has of its split: the name, or that of its folder."""
    return (file.parent.name if file.name.startswith("_annotations") else file.stem).lower()


def _neighbour(train: Path, files: list[Path] | None = None) -> Path | None:
    """The first file, val before test, whose name is that of the training images but for the split."""
    if files is None:
        beside = sorted(train.parent.glob("*.json"))
        files = beside + sorted(train.parent.parent.glob("*/_annotations.coco.json"))
    if not _TRAIN.search(_split(train)):
        return None
    prefix = _split(train).partition("train")[0]
    found = [f for f in files if f != train and _TEST.search(_split(f).rstrip("0123456789"))]
    found = [f for f in found if _split(f).startswith(prefix)]
    return min(found, key=lambda f: ("test" in _split(f), _split(f)[-4:] != _split(train)[-4:]), default=None)


def read_coco(path: Path, classes: list[str] | None = None, masks: bool = True) -> AnnotatedImages:
    """The images of one file; their categories must be among `classes`, where these are given. Raises as open_coco."""
    data = _load(path)
    categories = {c["id"]: c for c in data["categories"]}
    names = [str(categories[key].get("name", key)) for key in sorted(categories)]
    if len(set(names)) != len(names):  # told apart by their ids
        names = [f"{name} ({key})" for key, name in zip(sorted(categories), names, strict=True)]
    known = names if classes is None else classes
    label = {key: class_number(name, known, path) for key, name in zip(sorted(categories), names, strict=True)}
    skipped = Skipped(path)
    images = _images(data["images"], path, skipped)
    points = max((len(c.get("keypoints") or ()) for c in categories.values()), default=0)
    for entry in data["annotations"]:
        image = images.get(str(entry.get("image_id")))
        if image is None:
            skipped.add("annotations without an image", f"annotation {entry.get('id')}")
            continue
        category = entry.get("category_id")
        if not isinstance(category, int) or category not in label:
            raise UserError(
                f"{path}: annotation {entry.get('id')}: unknown category {category} "
                f"(the file's categories are {str(sorted(label)[:20]).strip('[]')})"
            )
        found = _object(entry, label[category], image, points, skipped)
        if found is not None:
            image.objects.append(found)
    kept = list(images.values())
    if masks:
        agree_on_masks(kept, skipped)
    skipped.log()
    return AnnotatedImages(kept, known, _flipped(list(categories.values())), None if masks else False)


def _load(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no whole JSON: {error}") from error
    for key in ("images", "categories", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UserError(f'{path}: is no JSON of COCO\'s: it has no list of "{key}"')
        if not all(isinstance(entry, dict) for entry in data[key]):
            raise UserError(f'{path}: an entry of "{key}" is no object')
    for key, needed in (("images", "id"), ("images", "file_name"), ("categories", "id")):
        if any(needed not in entry for entry in data[key]):
            raise UserError(f'{path}: an entry of "{key}" has no "{needed}"')
    if not all(isinstance(category["id"], int) for category in data["categories"]):
        raise UserError(f"{path}: the ids of categories are whole numbers")
    return data


def _images(entries: list[dict[str, Any]], path: Path, skipped: Skipped) -> dict[str, Annotated]:
    """By id. Raises UserError if none of the files is there."""
    folder = _folder(path, [str(entry["file_name"]) for entry in entries])
    images: dict[str, Annotated] = {}
    for entry in entries:
        file = folder / str(entry["file_name"])
        if not file.is_file():
            skipped.add("images whose file is missing, with their annotations", file)
        elif str(entry["id"]) in images:
            raise UserError(f"{path}: two images have the id {entry['id']}")
        else:
            sides = entry.get("height"), entry.get("width")
            given = all(isinstance(side, int) and side > 0 for side in sides)
            images[str(entry["id"])] = Annotated(file, sides if given else image_size(file))  # type: ignore[arg-type]
    return images


def _folder(path: Path, names: list[str]) -> Path:
    """Where the images of a file are. Raises UserError if there are none of them."""
    split = path.stem.rpartition("_")[2]
    roots = (path.parent, path.parent.parent)
    below = [root / name for root in roots for name in (split, f"images/{split}", "images", "")]
    for folder in below:
        if any((folder / name).is_file() for name in names[:100]):
            return folder
    first = f"{names[0]} is in none of {', '.join(map(str, below))}" if names else "it lists none"
    raise UserError(f"{path}: its images are not found: {first}")


def _object(entry: dict[str, Any], label: int, image: Annotated, points: int, skipped: Skipped) -> Object | None:
    """The object of an annotation, or None if it is skipped."""
    assert image.size is not None
    where = f"annotation {entry.get('id')} of {image.path.name}"
    sides = _array(entry.get("bbox"))
    if len(sides) != 4:
        skipped.add("objects without a box of four numbers", where)
        return None
    box = np.concatenate((sides[:2], sides[:2] + sides[2:]))
    if skipped.box(box, *image.size, where):
        return None
    area = _array([entry.get("area")])
    mask = _mask(entry.get("segmentation"), image.size, where, skipped)
    keypoints = None
    if points and "keypoints" in entry:
        values = _array(entry["keypoints"])
        if len(values) != 3 * points or not np.isfinite(values).all():
            skipped.add(f"keypoints that are not {points} of three finite numbers", where)
        else:
            keypoints = values.reshape(points, 3) + np.array([0.5, 0.5, 0])
    finite = len(area) == 1 and bool(np.isfinite(area[0]))
    crowd = entry.get("iscrowd", 0) in (1, True)
    return Object(box, label, False, crowd, float(area[0]) if finite else None, mask, keypoints)


def _array(values: Any) -> np.ndarray:
    """float64 (n,); empty if these are no numbers."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return np.zeros(0)
    return np.array(values, dtype=np.float64)


def _mask(given: Any, size: tuple[int, int], where: str, skipped: Skipped) -> Polygons | Rle | None:
    if not given:
        return None
    if isinstance(given, dict):
        try:
            of, _ = checked_runs(given)
        except ValueError:
            skipped.add("masks whose run lengths are damaged", where)
            return None
        if of != size:
            skipped.add("masks of another size than their image", where)
            return None
        return {"size": list(of), "counts": given["counts"]}
    polygons = [_array(polygon) for polygon in given] if isinstance(given, list) else []
    valid = [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0 and np.isfinite(p).all()]
    if len(valid) < len(polygons) or not valid:
        skipped.add("polygons that are not three or more finite points", where)
    return valid or None


def _flipped(categories: list[dict[str, Any]]) -> list[int] | None:
    """The keypoint that comes in the place of each in the mirror: left_eye in that of right_eye. None without names."""
    names = next((list(c["keypoints"]) for c in categories if c.get("keypoints")), None)
    if names is None:
        return None
    swap = {"left": "right", "right": "left"}
    mirrored = [re.sub("left|right", lambda found: swap[found[0]], str(name)) for name in names]
    return [names.index(m) if m in names else i for i, m in enumerate(mirrored)]
