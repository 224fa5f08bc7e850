"""Labels of pixels as PNG files."""

from pathlib import Path

import numpy as np
import torch
from PIL import PngImagePlugin
from torch import Tensor

from moco.runtime.errors import UserError, one_line
from moco.transfer.segmentation.fcn import IGNORED

_SCALED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies the values of 2 and 4 bits of grey with, so that the largest is white."""


def read_mask(path: Path) -> Tensor:
    """The values of a PNG with a palette or in grey, of up to 8 bits: uint8 (height, width).

    Raises UserError if it cannot be read, or has colours or 16 bits.
    """
    try:
        with PngImagePlugin.PngImageFile(path) as picture:
            mode, raw = picture.mode, picture.tile[0][3]
            values = np.array(picture) if mode in ("P", "L", "1") else None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UserError(f"{path}: is no mask that can be read as PNG: {one_line(error)}") from error
    if values is None:
        raise UserError(
            f"{path}: a mask is a PNG with a palette or 8 bits of grey, whose values are the classes, not {mode}: "
            "convert its colours to class numbers"
        )
    return torch.from_numpy(values.astype(np.uint8) // _SCALED.get(str(raw), 1))


def largest_label(labels: Tensor) -> int:
    """The largest value that is not ignored, -1 if all are."""
    return int(torch.where(labels == IGNORED, -1, labels.short()).max())


def require_same_size(image: Tensor, labels: Tensor, name: str) -> None:
    """Raises UserError if an image (3, h, w) and its labels (h, w) are not of one size."""
    if image.shape[1:] != labels.shape:
        (h, w), (image_h, image_w) = labels.shape, image.shape[1:]
        raise UserError(
            f"{name}: is {image_w}x{image_h} pixels and its mask {w}x{h}: they must be alike (a rotation in EXIF "
            "turns the image, but not its mask)"
        )
