"""Images with a class for every pixel, for training and validation: PASCAL VOC, Cityscapes, one's own, and drawn."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moco.data.formats.decode import is_turned_in_place, read_image
from moco.data.sources import shapes
from moco.data.sources.folder import SUFFIXES
from moco.data.sources.spec import split_spec
from moco.runtime.errors import UserError
from moco.transfer.segmentation.config import KINDS
from moco.transfer.segmentation.fcn import IGNORED
from moco.transfer.segmentation.masks import largest_label, read_mask, require_same_size

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""The 19 classes that are evaluated, in their order, and their values in labelIds; all others are ignored."""
SHAPES_TRAIN, SHAPES_VALIDATION = 10_000, 2_000


class SegmentationSet(Protocol):
    """Images and their labels, numbered from 0.

    Attributes:
        classes: their names, in the order of the labels' values.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image: its path."""
        ...

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The image, uint8 (3, h, w), RGB, and its labels, uint8 (h, w), below len(classes) or 255 (ignored).

        Raises UserError if one of them cannot be read, or does not fit.
        """
        ...

    def subset(self, index: Iterable[int]) -> "SegmentationSet":
        """The images of these numbers, in this order."""
        ...


class Files:
    """A `SegmentationSet` of images and masks as files.

    Args:
        pairs: the paths of each image and its mask. UserError if there are none, or if one is not there.
        classes: their names.
        values: uint8 (256,), the label of each value in the masks; None: it is the value.
    """

    def __init__(
        self, pairs: Iterable[tuple[Path, Path]], classes: tuple[str, ...], values: Tensor | None = None
    ) -> None:
        self.pairs, self.classes, self.values = list(pairs), classes, values
        if not self.pairs:
            raise UserError("a set of labelled pixels has no images")
        for kind, paths in zip(("image", "mask"), zip(*self.pairs, strict=True), strict=True):
            if missing := [path for path in paths if not path.is_file()]:
                raise UserError(f"{missing[0]}: no such {kind} ({len(missing)} of {len(paths)} {kind}s are missing)")

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.pairs[index][0]
        image = read_image(path)
        labels = self.labels(index)
        require_same_size(image, labels, str(path))
        if is_turned_in_place(path):  # by a quarter, the sizes show whether the mask was turned as well
            raise UserError(
                f"{path}: its EXIF turns or mirrors it, and nothing shows whether its mask was drawn before or after: "
                "turn the pixels and drop the EXIF"
            )
        return image, labels

    def labels(self, index: int) -> Tensor:
        """The labels alone, as of `read`."""
        path = self.pairs[index][1]
        labels = read_mask(path)
        if self.values is not None:
            labels = self.values[labels.long()]
        largest = largest_label(labels)
        if largest >= len(self.classes):
            raise UserError(
                f"{path}: holds the value {largest}, but the {len(self.classes)} classes are 0 to "
                f"{len(self.classes) - 1} (and {IGNORED} is ignored)"
            )
        return labels

    def subset(self, index: Iterable[int]) -> "Files":
        return Files([self.pairs[i] for i in index], self.classes, self.values)


class DrawnImages:
    """A `SegmentationSet` of `shapes`: class 0 is the background, the others are the outlines.

    Args:
        index: the images' numbers.
        size: their side in pixels.
    """

    classes = ("background", *shapes.CLASSES)

    def __init__(self, index: Iterable[int], size: int) -> None:
        if size < shapes.SMALLEST:
            raise UserError(f"shapes are drawn from {shapes.SMALLEST} pixels a side, not {size}")
        self.index, self.size = list(index), size

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        return f"shapes {self.index[index]}"

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        drawing = shapes.draw(torch.tensor([self.index[index]]), self.size)
        return drawing.images[0], drawing.masks[0].byte() * (drawing.labels[0] + 1).byte()

    def subset(self, index: Iterable[int]) -> "DrawnImages":
        return DrawnImages([self.index[i] for i in index], self.size)


Sets = tuple[SegmentationSet, SegmentationSet]


def open_segmentation(spec: str, *, size: int = 128) -> Sets:
    """Training and validation images.

    Args:
        spec: voc:PATH, cityscapes:PATH, own:PATH or shapes.
        size: the side in pixels of what is drawn.

    Raises UserError if there is no such set, or if a file of it is missing.
    """
    spellings = {kind: kind if kind == "shapes" else f"{kind}:PATH" for kind in KINDS}
    kind, argument = split_spec(spec, spellings, "set of labelled pixels")
    if kind == "shapes":
        return (
            DrawnImages(range(SHAPES_TRAIN), size),
            DrawnImages(range(SHAPES_TRAIN, SHAPES_TRAIN + SHAPES_VALIDATION), size),
        )
    path = Path(argument).expanduser()
    if not path.is_dir():
        raise UserError(f"--data {spec}: no such folder: give {kind}:PATH")
    openers: dict[str, Callable[[Path], Sets]] = {"voc": open_voc, "cityscapes": open_cityscapes, "own": open_own}
    return openers[kind](path)


def open_voc(root: Path) -> Sets:
    """VOC2012, or the folder above it: the lists train_aug (the paper's 10582 images) or train, and val.

    The masks of train_aug are those of SegmentationClassAug, as they are handed on (Hariharan et al. 2011).
    """
    root = root / "VOC2012" if (root / "VOC2012").is_dir() else root
    lists = root / "ImageSets" / "Segmentation"
    names = next((name for name in ("train_aug", "trainaug") if (lists / f"{name}.txt").is_file()), "train")

    def files(name: str, masks: str) -> Files:
        stems = _stems(lists / f"{name}.txt")
        pairs = [(root / "JPEGImages" / f"{stem}.jpg", root / masks / f"{stem}.png") for stem in stems]
        return Files(pairs, VOC_CLASSES)

    return files(names, "SegmentationClass" if names == "train" else "SegmentationClassAug"), files(
        "val", "SegmentationClass"
    )


def open_cityscapes(root: Path) -> Sets:
    """leftImg8bit and gtFine, train and val; labelTrainIds where all are there, else labelIds."""
    values = torch.full((256,), IGNORED, dtype=torch.uint8)
    values[list(CITYSCAPES_IDS.values())] = torch.arange(len(CITYSCAPES_IDS), dtype=torch.uint8)

    def files(split: str) -> Files:
        images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        if not images:
            raise UserError(f"{root}: holds no images leftImg8bit/{split}/CITY/*_leftImg8bit.png")
        folders = [root / "gtFine" / split / image.parent.name for image in images]
        stems = [image.name.removesuffix("leftImg8bit.png") + "gtFine_" for image in images]
        train_ids, ids = (
            [folder / f"{stem}{kind}.png" for folder, stem in zip(folders, stems, strict=True)]
            for kind in ("labelTrainIds", "labelIds")
        )
        ready = all(path.is_file() for path in train_ids)
        masks = zip(images, train_ids if ready else ids, strict=True)
        return Files(masks, tuple(CITYSCAPES_IDS), None if ready else values)

    return files("train"), files("val")


def open_own(root: Path) -> Sets:
    """images/ and masks/, a PNG of the image's stem; classes.txt has the classes' names, a line each.

    train.txt and val.txt list the stems; without them every tenth image is for validation. Without classes.txt the
    classes are the values in the masks, from 0 to the largest.
    """
    images: dict[str, Path] = {}
    for path in sorted((root / "images").glob("*")):
        if path.suffix.lower() in SUFFIXES and images.setdefault(path.stem, path) != path:
            raise UserError(f"{path}: another image, {images[path.stem].name}, has this stem, and so the same mask")
    if len(images) < 2:
        raise UserError(f"{root}: {len(images)} images in images/: training and validation need one each")
    if (root / "train.txt").is_file():
        stems = [_stems(root / name) for name in ("train.txt", "val.txt")]
    else:
        every = list(images)
        stems = [[stem for i, stem in enumerate(every) if i % 10], every[::10]]
    pairs = [
        [(images.get(stem, root / "images" / f"{stem}.jpg"), root / "masks" / f"{stem}.png") for stem in part]
        for part in stems
    ]
    if (root / "classes.txt").is_file():
        classes = tuple(_stems(root / "classes.txt"))
        _largest(pairs[0][:32])
    else:
        classes = tuple(map(str, range(_largest(pairs[0] + pairs[1]) + 1)))
    return Files(pairs[0], classes), Files(pairs[1], classes)


def _largest(pairs: list[tuple[Path, Path]]) -> int:
    """The largest class in masks. UserError if they hold 0 and 255 alone: a picture in black and white."""
    files = Files(pairs, ("",) * IGNORED)
    largest = max(largest_label(files.labels(i)) for i in range(len(files)))
    if largest < 1:
        raise UserError(
            f"{pairs[0][1].parent}: its masks hold no class but 0, and {IGNORED} is ignored: "
            "write class 1 as the value 1"
        )
    return largest


def _stems(path: Path) -> list[str]:
    """The lines of a list. UserError if it is not there, or empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no list of names, one a line, can be read there: {error}") from error
    if not any(lines):
        raise UserError(f"{path}: is empty: write a name a line")
    return [line for line in lines if line]
