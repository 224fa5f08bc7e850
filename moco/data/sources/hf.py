"""Hugging Face data sets, from the Hub or a folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco.data.dataset import Encoded
from moco.data.sources.encoded import TEST_NAMES
from moco.data.sources.source import OpenOptions, Source
from moco.runtime.errors import UserError

_LABELS = ("label", "labels", "fine_label")


class Rows:
    """A `Reader` of the images of an Arrow table, which stays on disk.

    Args:
        table: a datasets.Dataset whose column of that name is a datasets.Image that is not decoded.
        column: the images.
        title: what the table is called in an error.
    """

    remote = False

    def __init__(self, table: Any, column: str, title: str) -> None:
        self.table, self.column, self.title = table.select_columns([column]), column, title

    def __len__(self) -> int:
        return len(self.table)

    def read(self, position: int) -> bytes:
        image = self.table[position][self.column]
        if image is None:
            raise OSError("there is no image in this row")
        data: bytes | None = image["bytes"]
        return Path(image["path"]).read_bytes() if data is None else data

    def name(self, position: int) -> str:
        return f"{self.title}, row {position}"

    def version(self, position: int) -> str:
        return str(self.table._fingerprint)  # of the whole table


def open_hub(argument: str, options: OpenOptions) -> Source:
    """NAME or NAME:CONFIG on the Hub, or a folder that `datasets` can load or has saved.

    The images are the first column of images, the labels a ClassLabel column, if there is one.
    """
    if find_spec("datasets") is None:
        raise UserError(
            f"--data hf:{argument}: needs a package that is not installed: pip install 'momentum-contrast[hf]'"
        )
    splits = {name: table for name, table in _load(argument).items() if len(table)}
    if not splits:
        raise UserError(f"hf:{argument}: has no images")
    train_name = "train" if "train" in splits else next(iter(splits))
    if train_name != "train" and len(splits) > 1:
        raise UserError(f"hf:{argument}: has no split named train, only {', '.join(splits)}")
    train, classes = _images(splits[train_name], f"hf:{argument} {train_name}", options)
    tests = [_images(splits[name], f"hf:{argument} {name}", options)[0] for name in TEST_NAMES if name in splits]
    # On the Hub the test images of some data sets have no labels, but the validation images do.
    test = next((test for test in tests if test.labels is not None), None)
    return Source(options.cached(train), None if test is None else options.cached(test), classes)


def _load(argument: str) -> dict[str, Any]:
    """The splits by name."""
    import datasets

    path = Path(argument).expanduser()
    name, _, config = argument.partition(":")
    try:
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        elif path.exists():
            loaded = datasets.load_dataset(str(path))
        else:
            loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # a connection, a name, a script, a file of any format: whatever it is, it is named
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(f"hf:{argument}: cannot be loaded: {reason}") from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def _images(table: Any, title: str, options: OpenOptions) -> tuple[Encoded, list[str] | None]:
    import datasets

    columns = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise UserError(f"{title}: has no column of images, only {', '.join(table.features)}")
    table = table.cast_column(columns[0], datasets.Image(decode=False))
    labels = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    label = next((name for name in _LABELS if name in labels), labels[0] if labels else None)
    reader = Rows(table, columns[0], title)
    if label is None:
        return Encoded(reader, None, options.max_bad), None
    classes = list(table.features[label].names)
    return Encoded(reader, _known(table[label][:]), options.max_bad), classes


def _known(labels: list[int | None]) -> Tensor | None:
    """int64 (n,), or None if a label is missing: None, or -1 as the Hub has it."""
    return None if any(label is None or label < 0 for label in labels) else torch.tensor(labels, dtype=torch.int64)
