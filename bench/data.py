"""From bytes to views: ours, the released code's classic transforms, lightly's."""

import itertools
import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from bench.material import Material
from bench.side_by_side import Side, Turn, Work
from moco.data import Encoded, Files, InMemory, Loader, Source, training_plan
from moco.data.formats.pack import pack
from moco.data.sources.shards import open_shards
from moco.runtime.device import choose_device
from moco.views import Parameters, Views
from moco.views.recipes import IMAGENET

# Ours.


class Crops(Views):
    """Crops alone, uint8: what leaves the CPU when the photometric work is the device's."""

    def photometric(self, crops: Tensor, parameters: Parameters) -> list[Tensor]:
        return list(crops.chunk(self.count))


def load(images: Encoded | InMemory, views: Views, batch: int, workers: int) -> Turn:
    """An epoch of our loader a turn, in a process that is set up as the program sets up its own."""
    device = choose_device(name="cpu").device
    loader, steps = Loader(images, views, device, workers), len(images) // batch
    epochs = itertools.count()

    def work() -> int:
        start = next(epochs) * steps
        plan = training_plan(len(images), batch, 0, start, start + steps)
        return sum(len(made.views[0]) for made in loader.batches(plan))

    return Turn(work)


def our_jpegs(material: Material, size: int, batch: int, workers: int, photometric: bool) -> Turn:
    views = (Views if photometric else Crops)("v2", size, 0, channels_last=True)
    return load(Encoded(Files(material.jpegs)), views, batch, workers)


def our_small(material: Material, size: int, batch: int) -> Turn:
    images = torch.from_numpy(material.small(size)).permute(0, 3, 1, 2).contiguous()
    return load(InMemory(images), Views("cifar", size, 0, channels_last=True), batch, 0)


# Theirs.


class Blur:
    """Pillow's Gaussian blur with a random sigma, as in SimCLR and MoCo v2."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Twice:
    """Two views by one transform."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [self.transform(image), self.transform(image)]


def classic(size: int) -> Twice:
    """MoCo v2's augmentation of PIL images by torchvision's transforms, in the order of the released code."""
    steps = [
        T.RandomResizedCrop(size, scale=(0.2, 1.0)),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([Blur()], p=0.5),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(*IMAGENET),
    ]
    return Twice(T.Compose(steps))


def lightly_v2(size: int, **options: Any) -> Callable[[Image.Image], list[Tensor]]:
    from lightly.transforms import MoCoV2Transform

    return MoCoV2Transform(input_size=size, **options)


class Pictures(Dataset[Any]):
    """PIL images from files, or from an array as torchvision's CIFAR10 holds them, through a transform."""

    def __init__(self, images: Sequence[Path] | np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        image = self.images[position]
        if isinstance(image, Path):
            with image.open("rb") as file:
                return self.transform(Image.open(file).convert("RGB")), 0
        return self.transform(Image.fromarray(image)), 0


def loader_of(pictures: Pictures, batch: int, workers: int) -> DataLoader[Any]:
    """Workers stay from epoch to epoch: their start is in no turn, as it is in ours."""
    return DataLoader(
        pictures, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


def their_views(pictures: Callable[[], Pictures], batch: int, workers: int) -> Turn:
    loader = loader_of(pictures(), batch, workers)
    return Turn(lambda: sum(len(view1) for (view1, _), _ in loader))


def classic_jpegs(material: Material, size: int) -> Pictures:
    return Pictures(material.jpegs, classic(size))


def lightly_jpegs(material: Material, size: int) -> Pictures:
    return Pictures(material.jpegs, lightly_v2(size))


def lightly_small(material: Material, size: int) -> Pictures:
    return Pictures(material.small(size), lightly_v2(size, gaussian_blur=0.0))


# Reading.


def read_folder(material: Material, cold: bool) -> Turn:
    paths = sorted(material.many.rglob("*.jpg"))
    return reads(lambda: Files(paths), material.many, cold)


def read_shards(material: Material, cold: bool) -> Turn:
    packed = material.path / "packed"
    if not packed.exists():
        paths = sorted(material.many.rglob("*.jpg"))
        pack(Source(Encoded(Files(paths)), None, None), packed, images_per_shard=256)
    return reads(lambda: open_shards(str(packed))[0], packed, cold)


def reads(open_: Callable[[], Any], folder: Path, cold: bool) -> Turn:
    """Every image once in a random order; warm, ten times."""
    held: list[Any] = []
    randomly = random.Random(0)

    def before() -> None:
        held.clear()  # what is mapped cannot be evicted
        if cold:
            for path in folder.rglob("*"):
                if path.is_file():
                    evict(path)
        held.append(open_())

    def work() -> int:
        (reader,) = held
        order = list(range(len(reader))) * (1 if cold else 10)
        randomly.shuffle(order)
        for position in order:
            reader.read(position)
        return len(order)

    return Turn(work, before)


def evict(path: Path) -> None:
    """Takes a file out of the page cache. Raises RuntimeError where that does not work."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        for wait in (0, 0.01, 0.1, 1):  # pages in use at the moment are passed over
            time.sleep(wait)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                os.preadv(handle, [bytearray(mmap.PAGESIZE)], 0, os.RWF_NOWAIT)
            except BlockingIOError:
                return
            except OSError:
                raise RuntimeError("whether the page cache was emptied cannot be checked here") from None
        if os.fstat(handle).st_size:
            raise RuntimeError("files cannot be evicted from the page cache here")
    finally:
        os.close(handle)


# The works.

UINT8 = "two uint8 crops, ready for the device"
FLOATS = "two float32 views, normalised"


def jpegs_per_core(material: Material, size: int = 224) -> Work:
    ours = Side("moco", partial(our_jpegs, material, size, batch=16, workers=0, photometric=False), UINT8)
    peer = Side("classic transforms", partial(their_views, partial(classic_jpegs, material, size), 16, 0), FLOATS)
    return Work("jpeg-core", f"JPEG to two {size} crops, 1 core", ours, (peer,), at_least=6, cores=1)


def jpegs(material: Material, size: int = 224, cores: int = 2) -> Work:
    ours = Side("moco", partial(our_jpegs, material, size, batch=16, workers=0, photometric=True), FLOATS)
    peers = [
        Side(name, partial(their_views, partial(pictures, material, size), 16, cores), FLOATS, needs)
        for name, pictures, needs in (
            (f"classic transforms, {cores} workers", classic_jpegs, None),
            (f"lightly, {cores} workers", lightly_jpegs, "lightly"),
        )
    ]
    return Work("jpeg", f"JPEG to two {size} views, {_cores(cores)}", ours, tuple(peers), at_least=3, cores=cores)


def small_views(material: Material, size: int = 32, cores: int = 2) -> Work:
    ours = Side("moco", partial(our_small, material, size, 256), FLOATS)
    pictures = partial(lightly_small, material, size)
    peer = Side(f"lightly, {cores} workers", partial(their_views, pictures, 256, cores), FLOATS, "lightly")
    return Work("small", f"two {size} views in memory, {_cores(cores)}", ours, (peer,), at_least=8, cores=cores)


def shard_reads(material: Material, cold: bool) -> Work:
    ours = Side("moco", partial(read_shards, material, cold), "bytes")
    peer = Side("a folder of files", partial(read_folder, material, cold), "bytes")
    kind = "cold" if cold else "warm"
    return Work(f"read-{kind}", f"random reads from shards, {kind}", ours, (peer,), at_least=1)


def _cores(cores: int) -> str:
    return f"{cores} core{'s' if cores > 1 else ''}"
