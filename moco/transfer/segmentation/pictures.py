"""Pictures of segmentation: masks with a palette, classes over their image, a legend."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from moco.transfer.detection.pictures import draw_sheet
from moco.transfer.segmentation.fcn import IGNORED

_SIDE, _LINE = 320, 16
"""Of a picture on a sheet, its longer side; of a line of the legend, its height; in pixels."""
_TINT = 0.6
"""How much of a pixel is its class's colour."""


def palette() -> list[tuple[int, int, int]]:
    """Red, green and blue of the 256 values, as PASCAL VOC's masks have them: their bits from low to high give those
    of the colours from high to low. The ignored one is VOC's border."""
    colours = []
    for value in range(256):
        bits = [sum((value >> (3 * place + channel) & 1) << (7 - place) for place in range(3)) for channel in range(3)]
        colours.append((bits[0], bits[1], bits[2]))
    return colours


PALETTE = palette()


def as_mask(labels: Tensor) -> Image.Image:
    """uint8 (height, width) as a picture with a palette, whose values are the classes."""
    picture = Image.fromarray(labels.contiguous().numpy())
    picture.putpalette([part for colour in PALETTE for part in colour])
    return picture


def draw_over(image: Tensor, labels: Tensor) -> Image.Image:
    """An image, uint8 (3, height, width), with the colours of its classes, uint8 (height, width), over it."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    tinted = Image.blend(picture, as_mask(labels).convert("RGB"), _TINT)
    tinted.paste(picture, mask=Image.fromarray(((labels == IGNORED) * 255).byte().numpy()))
    return tinted


def legend(classes: Sequence[str], shown: Iterable[int]) -> Image.Image:
    """The colours of some classes beside their names."""
    labels = list(shown)
    columns = -(-len(labels) * _LINE // _SIDE) or 1
    picture = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for place, label in enumerate(labels):
        left, top = place * _LINE // _SIDE * (_SIDE // columns), place % (_SIDE // _LINE) * _LINE
        draw.rectangle((left, top + 2, left + 11, top + 13), fill=PALETTE[label], outline="grey")
        draw.text((left + 16, top + 2), classes[label][: _SIDE // columns // 7], fill="black")
    return picture


def draw_predictions(examples: Sequence[tuple[str, Tensor, Tensor, Tensor]], classes: Sequence[str], path: Path) -> None:
    """A sheet of images, and right of each its labels and its predicted classes; a legend below.

    Args:
        examples: of each its name, uint8 (3, height, width), and twice uint8 (height, width).
    """
    pictures = []
    for name, image, labels, predicted in examples:
        pictures.append((Path(name).name, _sized(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))))
        pictures.append(("labels", _sized(draw_over(image, labels))))
        pictures.append(("predicted", _sized(draw_over(image, predicted))))
    found = torch.cat([torch.cat((labels.flatten(), predicted.flatten())) for *_, labels, predicted in examples])
    shown = [label for label in found.unique().tolist() if label != IGNORED]
    draw_sheet([*pictures, ("classes", legend(classes, shown))], path, across=3)


def _sized(picture: Image.Image) -> Image.Image:
    scale = _SIDE / max(picture.size)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
