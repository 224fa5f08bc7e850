"""Decodes images from bytes to pixels."""

import io
import logging
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from moco.runtime.errors import UserError, one_line

decode_jpeg: Callable[..., Any] | None
"""TorchCodec's; None where it has no wheel for the platform: Pillow then decodes everything, on the CPU."""
try:
    decode_jpeg = import_module("torchcodec.decoders").decode_jpeg
except (ImportError, OSError, RuntimeError):
    decode_jpeg = None

MAX_PIXELS = 100_000_000
"""The most that an image may have, by its header: a small file can claim any size, and would fill the memory."""

# Pillow's warnings of damaged metadata would tear the progress bar. Filtered globally, as filters are not per thread.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Opened by their classes: `Image.open` knows formats that run other programs, and has a limit of pixels of its own.
_PLUGINS: dict[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    b"\xff\xd8": JpegImagePlugin.JpegImageFile,
    b"\x89PNG": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"II+\0": TiffImagePlugin.TiffImageFile,
    b"MM\0+": TiffImagePlugin.TiffImageFile,
}

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(Exception):
    """Bytes that are no image, or a damaged one: the message is its name and what is wrong, in one line."""

    instead: int | None = None
    """The position of the image that takes its place, if that is not the next one."""


class _RefusedError(Exception):
    """The message is complete without the name of the exception."""


def decode(data: bytes, name: str) -> Tensor:
    """The image as uint8 (3, height, width) in RGB, rotated as its EXIF tag demands, on white where transparent.

    JPEG, PNG, WebP, GIF, AVIF, BMP and TIFF, recognised by their content; of an animation the first frame; 16 bits
    scaled to 8. Safe, and faster, in many threads.

    Args:
        data: the content of an image file.
        name: what to call it in an error.

    Raises UnreadableImageError.
    """
    try:
        image = _decode_jpeg(data)
        return _decode_any(data) if image is None else image
    except _RefusedError as error:
        wrong, cause = str(error), None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        wrong, cause = f"cannot be decoded: {type(error).__name__}: {error}", error
    raise UnreadableImageError(" ".join(f"{name}: {wrong}".splitlines())) from cause


def read_image(path: Path) -> Tensor:
    """The image in a file, as `decode`. Raises UserError."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    except UnreadableImageError as error:
        raise UserError(str(error)) from error


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that any decoder gives alike, upright as it is; None for all else.

    What is not plain: other colours than grey or YCbCr, a rotation in EXIF, a size that `decode` refuses.
    """
    size = _jpeg_size(data)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return None
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            plain = image.mode in ("L", "RGB") and _orientation(image) == 1
    except Exception:  # damaged
        return None
    return (size[1], size[0]) if plain else None


def _decode_jpeg(data: bytes) -> Tensor | None:
    """As `decode`, by TorchCodec, without the interpreter's lock; None if this is not a JPEG, or damaged."""
    size = _jpeg_size(data)
    if size is None:
        return None
    _check(*size)
    if decode_jpeg is None:
        return None
    try:
        decoded: Tensor = decode_jpeg(data)
        return decoded
    except RuntimeError:
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by a JPEG's frame header; None where anything before it is unusual."""
    if data[:2] != b"\xff\xd8":
        return None
    start = 2
    while start + 9 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # tables, not frames
            return int.from_bytes(data[start + 7 : start + 9], "big"), int.from_bytes(
                data[start + 5 : start + 7], "big"
            )
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or marker == 0xFF:  # no segment, or pixels
            return None
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return None


def _decode_any(data: bytes) -> Tensor:
    if not data:
        raise _RefusedError("the file is empty")
    with _opened(data) as image:
        _check(*image.size)
        image.load()
        return _as_tensor(image)


def pixels(image: Image.Image) -> Tensor:
    """The pixels of Pillow's image, as `decode` gives those of a file. Raises UserError for 32 bits a channel."""
    try:
        return _as_tensor(image)
    except _RefusedError as error:
        raise UserError(f"the image {error}") from error


def _as_tensor(image: Image.Image) -> Tensor:
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _as_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _opened(data: bytes) -> ImageFile.ImageFile:
    plugin = next((plugin for magic, plugin in _PLUGINS.items() if data.startswith(magic)), None)
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        plugin = AvifImagePlugin.AvifImageFile
    if plugin is None:
        raise _RefusedError(f"is no image of a known format: begins with {data[:16].decode('latin-1')!a}")
    return plugin(io.BytesIO(data))


def _check(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _RefusedError(f"has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million")


def is_turned_in_place(path: Path) -> bool:
    """Whether a file's EXIF tag turns its image by 180 degrees or mirrors it, which leaves its size as it is."""
    try:
        with _opened(path.read_bytes()) as image:
            return _orientation(image) in (2, 3, 4)
    except Exception:  # `read_image` reports what cannot be read
        return False


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged, which the pixels need not be
        return 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # I before Pillow 11
        # The high byte, as Pillow does with 16 bits in three channels; its own conversion clips at 255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise _RefusedError("has 32 bits per channel, and which value is white is unknown")
    if image.mode in ("1", "L", "RGB", "CMYK", "YCbCr") and "transparency" not in image.info:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")
