"""Sources in memory: the drawn data set, and arrays in a file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco.data.dataset import InMemory
from moco.data.sources import shapes
from moco.data.sources.source import OpenOptions, Source
from moco.runtime.errors import UserError, one_line

SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000


def open_shapes(argument: str, options: OpenOptions) -> Source:
    if options.size < shapes.SMALLEST:
        raise UserError(f"--image-size {options.size}: shapes are drawn at {shapes.SMALLEST} pixels or more")
    drawn = [
        shapes.draw(torch.arange(start, start + count), size=options.size)
        for start, count in ((0, SHAPES_TRAIN), (SHAPES_TRAIN, SHAPES_TEST))
    ]
    train, test = (InMemory(drawing.images, drawing.labels) for drawing in drawn)
    return Source(train, test, list(shapes.CLASSES))


def open_npz(argument: str, options: OpenOptions) -> Source:
    """A folder's train.npz and test.npz, or one file."""
    path = Path(argument)
    if path.is_file():
        return Source(_read(path), None, None)
    if not (path / "train.npz").is_file():
        raise UserError(f"{path}: holds no train.npz (and test.npz), nor is it an .npz file")
    test = path / "test.npz"
    return Source(_read(path / "train.npz"), _read(test) if test.is_file() else None, None)


def _read(path: Path) -> InMemory:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            labels = torch.from_numpy(arrays["labels"].astype(np.int64)) if "labels" in arrays else None
    except KeyError as error:
        raise UserError(f'{path}: holds no array "images"') from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as .npz: {one_line(error)}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{path}: images are uint8 (n, height, width, 3), not {images.dtype} {images.shape}")
    if labels is not None and labels.shape != (len(images),):
        raise UserError(f"{path}: {len(images)} images but labels of shape {tuple(labels.shape)}")
    return InMemory(channels_first(images), labels)


def channels_first(images: np.ndarray) -> Tensor:
    """uint8 (n, height, width, 3) as (n, 3, height, width)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
