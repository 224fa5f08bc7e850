"""Encoded bytes become pixels."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class UnreadableImageError(Exception):
    """Bytes that are no image, or a damaged one: the message is its name and what is wrong, in one line."""


def decode(data: bytes, name: str) -> Tensor:
    """The image as uint8 (3, height, width) in RGB, upright as its EXIF says.

    Args:
        data: the content of an image file.
        name: what to call it in an error.

    Raises UnreadableImageError.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UnreadableImageError(f"{name}: {type(error).__name__}: {error}".replace("\n", " ")) from error
