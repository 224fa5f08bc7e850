"""Images that a trained network is applied to, and the folder of what it finds."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from moco.data.formats.decode import read_image
from moco.data.sources.folder import SUFFIXES
from moco.runtime.errors import UserError, one_line
from moco.runtime.files import write_whole

AnyImage = Tensor | Image.Image | Path | str
"""uint8 (3, height, width) in RGB, a picture of Pillow's, or the path of a file."""


def image_paths(given: Iterable[Path]) -> list[Path]:
    """Files as they are, and the images in folders and the folders in them, by name. Raises UserError if there is none.

    A file that is given need not have an image's suffix.
    """
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise UserError(f"{path}: no such image or folder of images")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no images in it ({', '.join(sorted(SUFFIXES))})")
        found += inside
    if not found:
        raise UserError("no images are given")
    return found


def make_empty(out: Path) -> None:
    """An empty folder. Raises UserError if something is there already, or if it cannot be created."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already, and not an empty folder: choose another one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be created: {one_line(error)}") from error


def file_names(paths: Iterable[Path]) -> list[str]:
    """Of drawn images: as the images', .jpg or .png, numbered where several are called alike; no two are the same."""
    stems: set[str] = set()
    found = []
    for path in paths:
        stem, count = path.stem, 1
        while stem in stems:
            count += 1
            stem = f"{path.stem}-{count}"
        stems.add(stem)
        found.append(stem + (".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"))
    return found


def save_picture(picture: Image.Image, path: Path) -> None:
    """As PNG or JPEG, by the path's suffix, whole or not at all."""
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    write_whole(path, lambda file: picture.save(file, kind, **({} if kind == "PNG" else {"quality": 90})))


def pixels_of(images: Sequence[AnyImage], who: str) -> Iterator[Tensor]:
    """Each image of a list, as `as_pixels`. Raises UserError, which names who takes it, for a single one."""
    if isinstance(images, AnyImage):
        raise UserError(f"{who} takes a list of images: put a single one in brackets")
    yield from map(as_pixels, images)


def as_pixels(image: AnyImage) -> Tensor:
    """A tensor, picture or file as uint8 (3, height, width), upright. Raises UserError."""
    if isinstance(image, Path | str):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"an image is uint8 (3, height, width) in RGB, a Pillow image or a path, not {what}")
    return image
