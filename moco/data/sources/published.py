"""Published data sets in the layout in which they are downloaded."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from moco.data.dataset import InMemory
from moco.data.sources.encoded import open_split
from moco.data.sources.npz import channels_first
from moco.data.sources.source import OpenOptions, Source
from moco.runtime.errors import UserError, one_line

_WNID = re.compile(r"n\d{8}")


@contextmanager
def _as_user_error(path: str, layout: str) -> Iterator[None]:
    """Turns what torchvision raises into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"{path}: holds no {layout} in torchvision's layout, or a damaged one (--data.download downloads it)"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {layout} cannot be read or downloaded: {one_line(error)}") from error


def open_cifar(dataset: type[datasets.CIFAR10]) -> Callable[[str, OpenOptions], Source]:
    """What opens CIFAR-10, or CIFAR-100 with its 100 fine labels."""

    def opened(path: str, options: OpenOptions) -> Source:
        with _as_user_error(path, dataset.base_folder):
            splits = [dataset(path, train=train, download=options.download) for train in (True, False)]
        train, test = (InMemory(channels_first(split.data), torch.tensor(split.targets)) for split in splits)
        return Source(train, test, splits[0].classes)

    return opened


def open_stl10(path: str, options: OpenOptions) -> Source:
    """Trains on the 100,000 unlabelled images; evaluation has 5,000 labelled ones to train on and 8,000 to test on."""
    with _as_user_error(path, datasets.STL10.base_folder):
        # Checks all files by their MD5. For each split it would do so again, for seconds.
        classes = datasets.STL10(path, split="test", download=options.download).classes
        train, bank, test = (_stl10(Path(path, "stl10_binary"), name) for name in ("unlabeled", "train", "test"))
    return Source(train, test, classes, bank)


def _stl10(folder: Path, split: str) -> InMemory:
    """The files hold planes column by column, and classes 1..10."""
    columns = np.memmap(folder / f"{split}_X.bin", mode="r").reshape(-1, 3, 96, 96)
    labels = folder / f"{split}_y.bin"
    return InMemory(
        torch.from_numpy(np.ascontiguousarray(columns.swapaxes(2, 3))),
        torch.from_numpy(np.fromfile(labels, np.uint8).astype(np.int64) - 1) if labels.is_file() else None,
    )


def open_imagenette(path: str, options: OpenOptions) -> Source:
    """imagenette2, imagenette2-320 or imagenette2-160 in the folder, in this order, or the folder itself."""
    folders = [Path(path, name) for name in ("", "imagenette2", "imagenette2-320", "imagenette2-160")]
    there = [folder for folder in folders if (folder / "train").is_dir() and (folder / "val").is_dir()]
    if not there:
        with _as_user_error(path, "imagenette2, imagenette2-320 or imagenette2-160"):
            datasets.Imagenette(path, size="320px", download=options.download)
        there = [Path(path, "imagenette2-320")]
    source = open_split(there[0] / "train", [there[0] / "val"], options)
    names = datasets.Imagenette._WNID_TO_CLASS
    return replace(source, classes=[names[wnid][0] if wnid in names else wnid for wnid in source.classes or []] or None)


def open_imagenet(path: str, options: OpenOptions) -> Source:
    """ILSVRC 2012: train and val, each with a folder for each class, named by its WordNet id."""
    splits = [Path(path, "train"), Path(path, "val")]
    for split in splits:
        names = sorted(folder.name for folder in split.iterdir() if folder.is_dir()) if split.is_dir() else []
        if not split.is_dir():
            raise UserError(f"{path}: holds no {split.name}/ with a folder for each class (n01440764, ...)")
        if not names:
            hint = "sort its images into them, as valprep.sh does" if split.name == "val" else "unpack each class's tar"
            raise UserError(f"{split}: holds no class folders (n01440764, ...): {hint}")
        if strange := [name for name in names if not _WNID.fullmatch(name)]:
            raise UserError(f"{split}: {strange[0]} is no WordNet id (n01440764): folder:{path} takes any names")
    return open_split(splits[0], splits[1:], options)
