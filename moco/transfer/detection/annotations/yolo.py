"""A folder with YOLO's text files: a line an object: class, and box or polygon in shares of the image's sides."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moco.data.sources.folder import SUFFIXES, find_images
from moco.runtime.errors import UserError, one_line
from moco.transfer.detection.annotations.annotated import (
    Annotated,
    AnnotatedImages,
    Object,
    Skipped,
    agree_on_masks,
    with_test,
)

_TRAIN, _TEST = ("train",), ("val", "valid", "test")


def open_yolo(path: Path, masks: bool = True) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    """Training and test images.

    Args:
        path: a folder or its data.yaml (names, train, val or test: folders, lists of them, or a text file of paths).
            Without one: classes.txt, and images/train, train/images or images; val or valid before test.
        masks: of the objects, where most have one: those without are left out. False: boxes alone, of all objects.

    The labels of images/x.jpg are in labels/x.txt, or beside it. An image without them has no objects.

    Raises UserError if nothing is found, or for an unknown class.
    """
    given = path if path.is_file() else next((f for f in (path / "data.yaml", path / "data.yml") if f.is_file()), None)
    folder = path.parent if path.is_file() else path
    data = {} if given is None else _load(given)
    classes = _classes(folder, data, given)
    skipped = Skipped(path)
    train, test = (_listed(folder, data, splits) or _by_folder(folder, splits) for splits in (_TRAIN, _TEST))
    train = train or sorted(find_images(folder / "images" if (folder / "images").is_dir() else folder))
    if not train:
        raise UserError(f"{path}: no images to train on: not in data.yaml, images/train, train/images or images")
    inside = set(test)
    images = _read_all([file for file in train if file not in inside], classes, skipped)
    tested = _read_all(test, classes, skipped)
    if not images:
        raise UserError(f"{path}: none of the images to train on is there: {train[0]}")
    if not any(image.objects for image in images):
        raise UserError(f"{path}: none of {len(images)} images to train on has an object: {_labels(images[0].path)}?")
    _report_labels_without_image({*train, *test}, skipped)
    if masks:
        agree_on_masks(images + tested, skipped)
    skipped.log()
    masks = masks and any(o.mask is not None for image in images for o in image.objects)
    found = (AnnotatedImages(split, classes, masks=masks) for split in (images, tested))
    return with_test(next(found), next(found) if tested else None)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is no YAML: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: has no names, train and val")
    return data


def _classes(folder: Path, data: dict[str, Any], given: Path | None) -> list[str]:
    names = data.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{given}: names are numbered from 0 without gaps")
        names = [names[number] for number in range(len(names))]
    for file in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if names is None and file.is_file():
            names = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    if not isinstance(names, list) or not names:
        raise UserError(f"{folder}: the classes' names are missing: names in data.yaml, or classes.txt, a line each")
    return [str(name) for name in names]


def _listed(folder: Path, data: dict[str, Any], splits: tuple[str, ...]) -> list[str]:
    """The images of the first of these splits that data.yaml has. Raises UserError if there are none of them."""
    for split in splits:
        places = data.get(split)
        if not places:
            continue
        files: list[str] = []
        for place in places if isinstance(places, list) else [places]:
            found = _place(folder, str(data.get("path") or ""), str(place))
            if found is None:
                raise UserError(f"{folder}: data.yaml has {split}: {place}, and there is no such folder or file")
            files += sorted(find_images(found)) if found.is_dir() else _lines(found)
        return files
    return []


def _place(folder: Path, root: str, name: str) -> Path | None:
    """A folder or file of data.yaml: its paths are often those of another machine, or one folder too high."""
    inner = re.sub(r"^(\.\./)+", "", name)
    for place in (folder / root / name, folder / name, folder / root / inner, folder / inner):
        if place.exists():
            return place
    return None


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(errors="replace").splitlines())
    return [str(path.parent / line) for line in lines if line.lower().endswith(SUFFIXES)]


def _by_folder(folder: Path, splits: tuple[str, ...]) -> list[str]:
    for split in splits:
        for place in (folder / "images" / split, folder / split / "images", folder / split):
            if place.is_dir():
                return sorted(find_images(place))
    return []


def _labels(image: Path) -> Path:
    """The text file of an image: the last folder `images` of its path is `labels`; else it is beside the image."""
    words = list(image.parts)
    for place in range(len(words) - 2, -1, -1):
        if words[place] == "images":
            other = Path(*words[:place], "labels", *words[place + 1 :]).with_suffix(".txt")
            return other if other.is_file() or not image.with_suffix(".txt").is_file() else image.with_suffix(".txt")
    return image.with_suffix(".txt")


def _report_labels_without_image(files: set[str], skipped: Skipped) -> None:
    """Counts them."""
    known = {_labels(Path(file)) for file in files}
    for folder in {label.parent for label in known}:
        for label in sorted(folder.glob("*.txt") if folder.name == "labels" or "labels" in folder.parts else ()):
            if label not in known and label.name != "classes.txt":
                skipped.add("annotations without an image", label)


def _read_all(files: list[str], classes: list[str], skipped: Skipped) -> list[Annotated]:
    images = []
    for path in map(Path, files):
        if path.is_file():
            images.append(_read(path, classes, skipped))
        else:
            skipped.add("images whose file is missing", path)
    return images


def _read(path: Path, classes: list[str], skipped: Skipped) -> Annotated:
    label = _labels(path)
    try:
        lines = label.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise UserError(f"{label}: cannot be read: {one_line(error)}") from error
    found = [_object(line, classes, f"{label}:{n}", skipped) for n, line in enumerate(lines, 1) if line.strip()]
    return Annotated(path, None, [o for o in found if o is not None])


def _object(line: str, classes: list[str], where: str, skipped: Skipped) -> Object | None:
    try:
        values = np.array([float(word) for word in line.split()])
    except ValueError:
        values = np.zeros(0)
    if not (len(values) == 5 or (len(values) >= 7 and len(values) % 2 == 1)):
        skipped.add("lines that are neither a class and a box nor a class and a polygon", where)
        return None
    if values[0] not in range(len(classes)):
        raise UserError(f"{where}: unknown class {line.split()[0]} (there are {len(classes)}, numbered from 0)")
    if len(values) == 5:
        box, mask = np.concatenate((values[1:3] - values[3:] / 2, values[1:3] + values[3:] / 2)), None
    else:
        points = values[1:].reshape(-1, 2)
        box, mask = np.concatenate((points.min(0), points.max(0))), [values[1:]]
    return None if skipped.box(box, 1, 1, where) else Object(box, int(values[0]), mask=mask)
