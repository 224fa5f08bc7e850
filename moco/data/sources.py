"""Where images come from, each with one spelling: shapes, cifar10:PATH, folder:PATH, npz:PATH."""

import difflib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco.data import shapes
from moco.data.folder import list_folder
from moco.data.images import ImageSet, InMemory, in_memory
from moco.errors import UserError

SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000
_TEST_NAMES = ("test", "val", "validation")


@dataclass
class Source:
    """A data set: what is trained on and, where there is any, what is tested on.

    Labels are used only to evaluate. Without a test set of its own, a labelled source keeps every tenth image for it.
    """

    train: ImageSet
    test: ImageSet | None
    classes: list[str] | None

    def __post_init__(self) -> None:
        if len(self.train) == 0:
            raise UserError("the data set has no training images")
        if self.test is None and self.train.labels is not None and len(self.train) >= 20:
            index = torch.arange(len(self.train))
            held_out = index % 10 == 9
            whole = self.train
            self.train, self.test = whole.subset(index[~held_out]), whole.subset(index[held_out])

    @property
    def labelled(self) -> bool:
        """Whether it can be evaluated: training and test images with labels."""
        return self.test is not None and self.train.labels is not None and self.test.labels is not None

    @property
    def num_classes(self) -> int:
        assert self.train.labels is not None
        return len(self.classes) if self.classes else int(self.train.labels.max()) + 1


def open_source(
    spec: str, *, size: int = 32, download: bool = False, max_bad: float = 0.01, resident_mb: int = 4096
) -> Source:
    """The source of that spelling; `size` is the side in pixels of what is drawn (shapes).

    Raises UserError if there is no such source or nothing usable in it.
    """
    kind, _, path = spec.partition(":")
    if kind == "shapes":
        return _shapes(size)
    readers: dict[str, Callable[[Path], Source]] = {
        "cifar10": lambda path: _cifar10(path, download),
        "folder": lambda path: _folder(path, max_bad, resident_mb),
        "npz": _npz,
    }
    if kind not in readers:
        near = difflib.get_close_matches(kind, [*readers, "shapes"], n=1)
        known = "shapes, cifar10:PATH, folder:PATH or npz:PATH"
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"--data {spec}: no such source: {hint}it is {known}")
    if not path:
        raise UserError(f"--data {spec}: a path is missing: {kind}:PATH")
    if not Path(path).expanduser().exists() and not (kind == "cifar10" and download):
        hint = " (--data.download fetches it)" if kind == "cifar10" else ""
        raise UserError(f"--data {spec}: no such path: {path}{hint}")
    return readers[kind](Path(path).expanduser())


def _shapes(size: int) -> Source:
    drawn = [
        shapes.draw(torch.arange(start, start + count), size=size)
        for start, count in ((0, SHAPES_TRAIN), (SHAPES_TRAIN, SHAPES_TEST))
    ]
    train, test = (InMemory(drawing.images, drawing.labels) for drawing in drawn)
    return Source(train, test, list(shapes.CLASSES))


def _cifar10(path: Path, download: bool) -> Source:
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(path), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(
            f"{path}: holds no cifar-10-batches-py in torchvision's layout (--data.download fetches it)"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: CIFAR-10 could not be read or fetched: {error}") from error
    train, test = (InMemory(_channels_first(part.data), torch.tensor(part.targets)) for part in parts)
    return Source(train, test, parts[0].classes)


def _npz(path: Path) -> Source:
    if path.is_file():
        return Source(_read_npz(path), None, None)
    if not (path / "train.npz").is_file():
        raise UserError(f"{path}: holds no train.npz (and test.npz), nor is it an .npz file")
    test = path / "test.npz"
    return Source(_read_npz(path / "train.npz"), _read_npz(test) if test.is_file() else None, None)


def _read_npz(path: Path) -> InMemory:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            labels = torch.from_numpy(arrays["labels"].astype(np.int64)) if "labels" in arrays else None
    except KeyError as error:
        raise UserError(f'{path}: holds no array "images"') from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as .npz: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{path}: images are uint8 (n, height, width, 3), not {images.dtype} {images.shape}")
    if labels is not None and labels.shape != (len(images),):
        raise UserError(f"{path}: {len(images)} images but labels of shape {tuple(labels.shape)}")
    return InMemory(_channels_first(images), labels)


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _folder(path: Path, max_bad: float, resident_mb: int) -> Source:
    """PATH/train and PATH/test (or val) if they are there; else PATH itself. Classes are folders, or there are none."""
    if not path.is_dir():
        raise UserError(f"{path}: is a file; folder:PATH takes a folder of images")
    split = (path / "train").is_dir()
    tests = [path / name for name in _TEST_NAMES if split and (path / name).is_dir()]
    train, classes = list_folder(path / "train" if split else path, max_bad, None)
    test = list_folder(tests[0], max_bad, classes)[0] if tests else None
    return Source(in_memory(train, resident_mb) or train, test and (in_memory(test, resident_mb) or test), classes)
