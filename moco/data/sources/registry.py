"""Where images come from, each with one spelling, as KINDS lists them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchvision import datasets

from moco.data.sources.encoded import open_folder, open_shards
from moco.data.sources.hf import open_hub
from moco.data.sources.npz import open_npz, open_shapes
from moco.data.sources.published import open_cifar, open_imagenet, open_imagenette, open_stl10
from moco.data.sources.source import OpenOptions, Source
from moco.data.sources.spec import split_spec
from moco.runs.config import Config
from moco.runtime.errors import UserError

__all__ = ["KINDS", "Kind", "Source", "open_source", "source_of"]


@dataclass(frozen=True)
class Kind:
    """One kind of source: its argument after the colon, a description, and the function that opens it."""

    argument: str
    about: str
    open: Callable[[str, OpenOptions], Source]
    fetched: bool = False
    """Whether --data.download downloads it."""

    def spelling(self, name: str) -> str:
        return f"{name}:{self.argument}" if self.argument else name


KINDS = {
    "shapes": Kind("", "drawn by the program: 10 outlines, any size, with boxes and masks; no download", open_shapes),
    "cifar10": Kind("PATH", "CIFAR-10 as torchvision has it", open_cifar(datasets.CIFAR10), fetched=True),
    "cifar100": Kind("PATH", "CIFAR-100 as torchvision has it", open_cifar(datasets.CIFAR100), fetched=True),
    "stl10": Kind("PATH", "STL-10: trains on its 100,000 unlabelled images", open_stl10, fetched=True),
    "imagenette": Kind(
        "PATH", "10 classes of ImageNet; --data.download takes the 320-pixel version", open_imagenette, fetched=True
    ),
    "imagenet": Kind("PATH", "ILSVRC 2012: train and val with a folder for each class", open_imagenet),
    "folder": Kind(
        "PATH", "images in class folders, or without; PATH/train and PATH/test if they are there", open_folder
    ),
    "npz": Kind("PATH", "train.npz and test.npz, or one file: images uint8 (n, h, w, 3), labels (n,)", open_npz),
    "shards": Kind("PATTERN", "tar files, here or at a URL, as moco pack and WebDataset write them", open_shards),
    "hf": Kind(
        "NAME", "a Hugging Face data set, NAME:CONFIG or a folder (pip install 'momentum-contrast[hf]')", open_hub
    ),
}


def open_source(
    spec: str, *, size: int = 32, download: bool = False, max_bad: float = 0.01, cache_mb: int = 4096
) -> Source:
    """The source of that spelling, such as "folder:PATH"; the other arguments are those of `OpenOptions`.

    Raises UserError if there is no such source or nothing usable in it.
    """
    name, argument = split_spec(spec, {name: kind.spelling(name) for name, kind in KINDS.items()}, "source")
    kind = KINDS[name]
    if kind.argument == "PATH":
        path = Path(argument).expanduser()
        if not path.exists() and not (kind.fetched and download):
            hint = " (--data.download downloads it)" if kind.fetched else ""
            raise UserError(f"--data {spec}: no such path: {argument}{hint}")
        argument = str(path)
    return kind.open(argument, OpenOptions(size, download, max_bad, cache_mb))


def source_of(config: Config) -> Source:
    """The source that a run's configuration names, as far as it takes it. Raises UserError as `open_source`."""
    data = config.data
    source = open_source(
        data.source,
        size=config.views.image_size,
        download=data.download,
        max_bad=data.max_bad,
        cache_mb=config.compute.cache_mb,
    )
    return source if data.per_class is None else source.first_of_each_class(data.per_class)
