"""What is measured on: JPEGs of photographs' size, and small images."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from moco.data import open_source
from moco.data.sources.folder import SUFFIXES
from moco.data.sources.shapes import draw

SIZE = (500, 375)
"""Width and height of a JPEG: ImageNet's most common."""


@dataclass(frozen=True)
class Material:
    """A folder with `jpeg/all/*.jpg`, `many/all/*.jpg` (each of these several times) and `small.npy`."""

    path: Path

    @property
    def jpegs(self) -> list[Path]:
        return sorted((self.path / "jpeg/all").iterdir())

    @property
    def many(self) -> Path:
        return self.path / "many"

    def small(self, size: int = 32) -> np.ndarray:
        """uint8 (n, size, size, 3)."""
        images = np.load(self.path / "small.npy")
        if images.shape[1:3] == (size, size):
            return images
        scaled = F.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2).float(), (size, size), mode="bilinear")
        return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def prepare(path: Path, photographs: Path | None, cifar: str | None, jpegs: int, copies: int, small: int) -> str:
    """Fills the folder; returns a short description of its content."""
    jpeg, many = path / "jpeg/all", path / "many/all"
    jpeg.mkdir(parents=True)
    many.mkdir(parents=True)
    found = sorted(p for p in photographs.rglob("*") if p.suffix.lower() in SUFFIXES) if photographs else []
    sizes = []
    for number in range(jpegs):
        picture = _photograph(found[number % len(found)]) if found else _drawn(number)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        sizes.append(len(buffer.getvalue()))
        (jpeg / f"{number:05d}.jpg").write_bytes(buffer.getvalue())
        for copy in range(copies):
            shutil.copyfile(jpeg / f"{number:05d}.jpg", many / f"{number:05d}-{copy}.jpg")
    images = open_source(cifar).train.images[:small] if cifar else draw(torch.arange(small)).images
    np.save(path / "small.npy", images.permute(0, 2, 3, 1).contiguous().numpy())
    what = f"photographs of {photographs.name}" if photographs and found else "drawn by the bench"
    mean = sum(sizes) / len(sizes) / 1000
    kind = "CIFAR" if cifar else "drawn by the bench"
    return f"JPEGs {what}, 500x375, quality 90, {mean:.0f} kB each; small images {kind}"


def _photograph(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.fit(image.convert("RGB"), SIZE, Image.Resampling.BICUBIC)


def _drawn(number: int) -> Image.Image:
    """An object of `shapes` on noise of all scales, its amplitude in proportion to the scale as in photographs."""
    width, height = SIZE
    image = draw(torch.tensor([number]), size=width).images[0, :, (width - height) // 2 :][:, :height].float()
    generator = torch.Generator().manual_seed(number)
    for scale in (1, 2, 4, 8, 16, 32, 64):
        image += _noise(scale, generator) * 2.4 * scale**0.6
    return Image.fromarray(image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def _noise(scale: int, generator: torch.Generator) -> Tensor:
    width, height = SIZE
    coarse = torch.randn(1, 1, -(-height // scale), -(-width // scale), generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic" if scale > 1 else "nearest")[0]
