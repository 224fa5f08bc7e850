"""PASCAL VOC's folders: Annotations/*.xml, JPEGImages, ImageSets/Main/*.txt."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco.data.sources.folder import SUFFIXES
from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.annotated import (
    Annotated,
    AnnotatedImages,
    Object,
    Skipped,
    class_number,
    image_size,
    with_test,
)

CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
"""VOC's 20, in the challenge's order."""
_CHALLENGE = re.compile(r"VOC20\d\d")


class _Split(NamedTuple):
    """A folder, and the names of its images."""

    folder: Path
    names: list[str]


def open_voc(path: Path) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    """Training and test images.

    A folder with Annotations is taken as it is; one with VOC2007 and VOC2012 in it gives the training images of both
    and the test images of the first that has some. The first list of trainval and train is trained on, the first of
    test and val tested on, an image in both only tested on. Folders named VOC20xx have the challenge's 20 classes;
    others those that their training images have. Coordinates are counted from 0, so 1 is subtracted from xmin and ymin.

    Raises UserError without annotated images, or for an annotation that cannot be read or has an unknown class.
    """
    folders = _folders(path)
    # VOC2012's test images have lists without annotations.
    tests = [_first_list(folder, ("test", "val")) for folder in folders]
    test = next((split for split in tests if split), None)
    trains = [_train_list(folder, test if test and test.folder == folder else None) for folder in folders]
    challenge = CLASSES if all(_CHALLENGE.fullmatch(folder.name) for folder in folders) else None
    skipped = Skipped(path)
    train_images, names = _read_splits([split for split in trains if split], skipped)
    test_images, test_names = _read_splits([test] if test else [], skipped)
    skipped.log()
    if not train_images:
        raise UserError(f"{path}: no training image has an annotation in Annotations")
    classes = challenge or sorted({name for image in names for name in image})
    if not classes:
        raise UserError(f"{path}: no object is annotated in its training images")
    _number(train_images, names, classes)
    _number(test_images, test_names, classes)
    return with_test(
        AnnotatedImages(train_images, classes), AnnotatedImages(test_images, classes) if test_images else None
    )


def _folders(path: Path) -> list[Path]:
    for folder in (path, path / "VOCdevkit"):
        if (folder / "Annotations").is_dir():
            return [folder]
        years = sorted(year for year in folder.glob("VOC20[0-9][0-9]") if (year / "Annotations").is_dir())
        if years:
            return years
    raise UserError(f"{path}: is no folder in VOC's layout: it has neither Annotations nor VOC2007 or VOC2012 with it")


def _first_list(folder: Path, splits: tuple[str, ...]) -> _Split | None:
    """The first of these lists in ImageSets/Main of which some image is annotated."""
    for split in splits:
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        if path.is_file():
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
            # A class's own list has 1, 0 or -1 behind each name.
            annotated = {file.stem for file in (folder / "Annotations").glob("*.xml")}
            names = [line if line in annotated else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
            if annotated.intersection(names):
                return _Split(folder, names)
    return None


def _train_list(folder: Path, test: _Split | None) -> _Split:
    listed = _first_list(folder, ("trainval", "train"))
    held_out = set(test.names) if test else set()
    names = listed.names if listed else sorted(file.stem for file in (folder / "Annotations").glob("*.xml"))
    return _Split(folder, [name for name in names if name not in held_out])


def _read_splits(splits: list[_Split], skipped: Skipped) -> tuple[list[Annotated], list[list[str]]]:
    """The images, and of each the names of its objects' classes."""
    images: list[Annotated] = []
    classes: list[list[str]] = []
    for folder, names in splits:
        pictures = folder / "JPEGImages"
        listing = pictures.iterdir() if pictures.is_dir() else []
        files = {file.stem: file for file in listing if file.suffix.lower() in SUFFIXES}
        for name in names:
            annotation = folder / "Annotations" / f"{name}.xml"
            if not annotation.is_file():
                skipped.add("images without an annotation", annotation)
            elif name not in files:
                skipped.add("annotations without an image", annotation)
            else:
                image, found = _read(annotation, files[name], skipped)
                images.append(image)
                classes.append(found)
    return images, classes


def _read(path: Path, file: Path, skipped: Skipped) -> tuple[Annotated, list[str]]:
    root = parse_xml(path)
    height, width = (_number_in(root, f"size/{side}") for side in ("height", "width"))
    size = (int(height), int(width)) if 1 <= height < 1e6 and 1 <= width < 1e6 else image_size(file)
    image, names = Annotated(file, size), []
    for element in root.findall("object"):
        name = (element.findtext("name") or "").strip()
        if not name or element.find("bndbox") is None:
            skipped.add("objects without a name or box", path)
            continue
        corners = [_number_in(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        box = np.array(corners) - [1, 1, 0, 0]
        if not skipped.box(box, *size, path):
            image.objects.append(Object(box, 0, difficult=_number_in(element, "difficult") == 1))
            names.append(name)
    return image, names


def parse_xml(path: Path) -> Any:
    """The root of an XML file. Raises UserError if it is damaged or has entities, or without defusedxml."""
    try:
        parser = import_module("defusedxml.ElementTree")
    except ImportError as error:
        raise UserError("VOC's annotations need defusedxml: pip install 'momentum-contrast[detection]'") from error
    try:
        return parser.parse(path).getroot()
    except parser.ParseError as error:
        raise UserError(f"{path}: is no whole XML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError) as error:  # defusedxml's are ValueErrors; an unknown encoding
        raise UserError(f"{path}: is refused: it has entities or an unknown encoding") from error


def _number_in(element: Any, path: str) -> float:
    """NaN where there is none."""
    try:
        return float(element.findtext(path) or "nan")
    except ValueError:
        return float("nan")


def _number(images: list[Annotated], names: list[list[str]], classes: list[str]) -> None:
    for image, found in zip(images, names, strict=True):
        for annotated, name in zip(image.objects, found, strict=True):
            annotated.label = class_number(name, classes, image.path)
