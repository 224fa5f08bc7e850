"""Sources of encoded images: folders, shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moco.data.dataset import Encoded, ImageSet
from moco.data.sources.folder import list_folder
from moco.data.sources.source import OpenOptions, Source
from moco.runtime.errors import UserError

if TYPE_CHECKING:
    from moco.data.sources.shards import Shards

TEST_NAMES = ("test", "val", "validation")


def open_folder(argument: str, options: OpenOptions) -> Source:
    """PATH/train and PATH/test (or val) if they are there; else PATH itself. Classes are folders, or there are none."""
    path = Path(argument)
    if not path.is_dir():
        raise UserError(f"{path}: is a file; folder:PATH takes a folder of images")
    split = (path / "train").is_dir()
    tests = [path / name for name in TEST_NAMES if split and (path / name).is_dir()]
    return open_split(path / "train" if split else path, tests, options)


def open_split(train: Path, tests: Sequence[Path], options: OpenOptions) -> Source:
    """A folder of training images and, first of `tests`, one of test images."""
    images, classes = list_folder(train, options.max_bad, None)
    test = list_folder(tests[0], options.max_bad, classes)[0] if tests else None
    return Source(options.cached(images), None if test is None else options.cached(test), classes)


def open_shards(argument: str, options: OpenOptions) -> Source:
    """Tar shards, local or at a URL."""
    from moco.data.sources import shards

    train, test, classes, bank = shards.open_shards(argument)
    test_set, bank_set = (None if reader is None else _wrap(reader, options) for reader in (test, bank))
    return Source(_wrap(train, options), test_set, classes, bank_set)


def _wrap(reader: "Shards", options: OpenOptions) -> ImageSet:
    """Remote shards are read as they are needed, local ones may be cached in memory."""
    images = Encoded(reader, reader.labels(), options.max_bad)
    return images if reader.remote else options.cached(images)
