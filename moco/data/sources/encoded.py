"""Sources of encoded images: folders, shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moco.data.dataset import Encoded, ImageSet
from moco.data.sources.folder import list_folder
from moco.data.sources.source import Opening, Source
from moco.runtime.errors import UserError

if TYPE_CHECKING:
    from moco.data.sources.shards import Shards

TEST_NAMES = ("test", "val", "validation")


def open_folder(argument: str, opening: Opening) -> Source:
    """PATH/train and PATH/test (or val) if they are there; else PATH itself. Classes are folders, or there are none."""
    path = Path(argument)
    if not path.is_dir():
        raise UserError(f"{path}: is a file; folder:PATH takes a folder of images")
    split = (path / "train").is_dir()
    tests = [path / name for name in TEST_NAMES if split and (path / name).is_dir()]
    return open_split(path / "train" if split else path, tests, opening)


def open_split(train: Path, tests: Sequence[Path], opening: Opening) -> Source:
    """A folder of training images and, first of `tests`, one of test images."""
    images, classes = list_folder(train, opening.max_bad, None)
    test = list_folder(tests[0], opening.max_bad, classes)[0] if tests else None
    return Source(opening.cached(images), None if test is None else opening.cached(test), classes)


def open_shards(argument: str, opening: Opening) -> Source:
    """Tar shards, here or far away."""
    from moco.data.sources import shards

    train, test, classes, bank = shards.open_shards(argument)
    test_set, bank_set = (None if reader is None else _wrap(reader, opening) for reader in (test, bank))
    return Source(_wrap(train, opening), test_set, classes, bank_set)


def _wrap(reader: "Shards", opening: Opening) -> ImageSet:
    """Shards far away are read as they are needed, those here may come into memory."""
    images = Encoded(reader, reader.labels(), opening.max_bad)
    return images if reader.remote else opening.cached(images)
