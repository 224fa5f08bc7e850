"""Pictures of segmentation: masks with a palette, classes over their image, a legend."""

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from moco.transfer.detection.pictures import draw_sheet
from moco.transfer.segmentation.fcn import IGNORED

BACKGROUND = "background"
_SIDE, _LINE = 320, 16
"""Of a picture on a sheet, its longer side; of a line of the legend, its height; in pixels."""
_TINT = 0.6
"""How much of a pixel is its class's colour."""


def palette(classes: Sequence[str]) -> list[tuple[int, int, int]]:
    """Red, green and blue of each class, 0 to 255: black of a background, else hues far from each other.

    After five classes the hues come near to earlier ones, so there brightness changes, and after ten saturation.
    """
    return [(0, 0, 0) if name == BACKGROUND else _colour(label) for label, name in enumerate(classes)]


def _colour(label: int) -> tuple[int, int, int]:
    hue, saturation, brightness = 0.05 + label * 0.618034, (0.85, 0.45)[label // 10 % 2], (0.95, 0.6)[label // 5 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def as_mask(labels: Tensor, classes: Sequence[str]) -> Image.Image:
    """uint8 (height, width) as a picture with a palette, whose values are the classes; what is ignored is white."""
    picture = Image.fromarray(labels.contiguous().numpy())
    colours = [*palette(classes), *[(255, 255, 255)] * (256 - len(classes))]
    picture.putpalette([part for each in colours for part in each])
    return picture


def draw_over(image: Tensor, labels: Tensor, classes: Sequence[str]) -> Image.Image:
    """An image, uint8 (3, height, width), with the colours of its classes, uint8 (height, width), over it.

    A background and what is ignored keep the image's own colours.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    tinted = Image.blend(picture, as_mask(labels, classes).convert("RGB"), _TINT)
    kept = labels == IGNORED
    if BACKGROUND in classes:
        kept |= labels == classes.index(BACKGROUND)
    tinted.paste(picture, mask=Image.fromarray((kept * 255).byte().numpy()))
    return tinted


def legend(classes: Sequence[str], shown: Iterable[int]) -> Image.Image:
    """The colours of some classes beside their names."""
    labels, colours = list(shown), palette(classes)
    columns = -(-len(labels) * _LINE // _SIDE) or 1
    picture = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for place, label in enumerate(labels):
        left, top = place * _LINE // _SIDE * (_SIDE // columns), place % (_SIDE // _LINE) * _LINE
        draw.rectangle((left, top + 2, left + 11, top + 13), fill=colours[label], outline="grey")
        draw.text((left + 16, top + 2), classes[label][: _SIDE // columns // 7], fill="black")
    return picture


def draw_labels(examples: Sequence[tuple[str, Tensor, Tensor]], classes: Sequence[str], path: Path) -> None:
    """A sheet of images and, right of each, its labels; a legend below.

    Args:
        examples: of each its name, uint8 (3, height, width) and uint8 (height, width).
    """
    pictures = []
    for name, image, labels in examples:
        pictures.append((Path(name).name, _sized(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))))
        pictures.append(("labels", _sized(draw_over(image, labels, classes))))
    _sheet(pictures, [labels for *_, labels in examples], classes, path, across=4)


def draw_predictions(
    examples: Sequence[tuple[str, Tensor, Tensor, Tensor]], classes: Sequence[str], path: Path
) -> None:
    """A sheet of images, and right of each its labels and its predicted classes; a legend below.

    Args:
        examples: of each its name, uint8 (3, height, width), and twice uint8 (height, width).
    """
    pictures = []
    for name, image, labels, predicted in examples:
        pictures.append((Path(name).name, _sized(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))))
        pictures.append(("labels", _sized(draw_over(image, labels, classes))))
        pictures.append(("predicted", _sized(draw_over(image, predicted, classes))))
    _sheet(pictures, [each for *_, labels, predicted in examples for each in (labels, predicted)], classes, path, 3)


def _sheet(
    pictures: Sequence[tuple[str, Image.Image]],
    labels: Sequence[Tensor],
    classes: Sequence[str],
    path: Path,
    across: int,
) -> None:
    """Pictures and a legend of the classes that are in `labels`."""
    found = torch.cat([each.flatten() for each in labels]).unique().tolist()
    shown = legend(classes, [label for label in found if label != IGNORED])
    draw_sheet([*pictures, ("classes", shown)], path, across)


def _sized(picture: Image.Image) -> Image.Image:
    scale = _SIDE / max(picture.size)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
