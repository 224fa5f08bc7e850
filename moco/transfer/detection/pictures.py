"""Pictures of detection: objects drawn on their images, found beside annotated, and precision-recall curves."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from moco.runtime.files import write_whole
from moco.transfer.detection.instances import Detections, Target
from moco.transfer.detection.transforms import resize_target

_CELL, _GAP, _CAPTION, _ACROSS = 320, 6, 14, 4
"""Of a sheet, in pixels: a picture's longer side, what lies between two, a line of text; and pictures side by side."""
_TINT = 0.4
"""How much of a mask's pixels is its class's colour."""


def colour(label: int) -> tuple[int, int, int]:
    """Red, green and blue of a class, 0 to 255: hues far from each other for classes next to each other."""
    red, green, blue = colorsys.hsv_to_rgb((0.05 + label * 0.618034) % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(
    image: Tensor, objects: Target | Detections, classes: list[str], threshold: float = 0.5, side: int = _CELL
) -> Image.Image:
    """An image with its objects' boxes, masks, keypoints and classes; of detections also their scores.

    Args:
        image: uint8 (3, height, width), in whose pixels the objects are.
        threshold: detections with a lower score are left out.
        side: of the picture, the longer one, in pixels.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    target, captions = _captioned(objects, classes, threshold)
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(size, method)
    target = resize_target(target, (height, width), (size[1], size[0]))
    for row, label in enumerate(target.classes.tolist()):
        picture.paste(colour(label), mask=_tint(target, row, size))
    draw = ImageDraw.Draw(picture)
    # Lines and letters that can be seen in a large picture too.
    line, draw.font = max(side // 400, 2), ImageFont.load_default(max(side // 60, 10))
    for row, (label, caption) in enumerate(zip(target.classes.tolist(), captions, strict=True)):
        x1, y1, x2, y2 = target.boxes[row].tolist()
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour(label), width=line)
        _write(draw, (x1 + line, y1), caption, colour(label))
        for x, y, seen in [] if target.keypoints is None else target.keypoints[row].tolist():
            if seen > 0:
                draw.ellipse((x - line, y - line, x + line, y + line), fill=colour(label), outline="black")
    return picture


def _captioned(objects: Target | Detections, classes: list[str], threshold: float) -> tuple[Target, list[str]]:
    names = [classes[label] for label in objects.classes.tolist()]
    if isinstance(objects, Target):
        return replace(objects, boxes=objects.boxes.cpu(), classes=objects.classes.cpu()), names
    kept = (objects.scores >= threshold).nonzero()[:, 0]
    columns = (objects.boxes, objects.classes, objects.masks, objects.keypoints)
    boxes, labels, masks, keypoints = (None if column is None else column[kept].cpu() for column in columns)
    assert boxes is not None
    assert labels is not None
    scored = [f"{names[row]} {objects.scores[row]:.2f}" for row in kept.tolist()]
    # In the keypoints' last column detections have scores: all are drawn.
    keypoints = None if keypoints is None else torch.cat((keypoints[..., :2], torch.ones_like(keypoints[..., :1])), -1)
    return Target(boxes, labels, masks, keypoints), scored


def _tint(target: Target, row: int, size: tuple[int, int]) -> Image.Image:
    """How much of each pixel is tinted, as Pillow's greys; of width and height `size`."""
    grey = Image.new("L", size)
    if isinstance(target.masks, Tensor):
        return Image.fromarray((target.masks[row].cpu().numpy() * round(255 * _TINT)).astype(np.uint8))
    for polygon in [] if target.masks is None else target.masks[row]:
        ImageDraw.Draw(grey).polygon(polygon.tolist(), fill=round(255 * _TINT))
    return grey


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, ground: tuple[int, int, int]) -> None:
    """A caption on its ground, above a place, or below it at the picture's upper edge."""
    left, top, right, bottom = draw.textbbox(place, text)
    up = min(bottom - place[1], place[1])
    draw.rectangle((left, top - up, right, bottom - up), fill=ground)
    draw.text((place[0], place[1] - up), text, fill="white" if sum(ground) < 400 else "black")


def draw_sheet(pictures: Sequence[tuple[str, Image.Image]], path: Path, across: int = _ACROSS) -> None:
    """Pictures under their captions as one PNG, so many side by side."""
    wide, high = _CELL + _GAP, _CAPTION + _CELL + _GAP
    columns, rows = min(across, max(len(pictures), 1)), max(-(-len(pictures) // across), 1)
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, picture) in enumerate(pictures):
        left, top = number % across * wide + _GAP, number // across * high + _GAP
        draw.text((left, top), caption[-_CELL // 6 :], fill="black")
        sheet.paste(picture, (left, top + _CAPTION))
    write_whole(path, lambda file: sheet.save(file, "PNG"))


def draw_beside_truth(
    images: Sequence[tuple[str, Tensor, Target, Detections]], classes: list[str], path: Path, threshold: float = 0.5
) -> None:
    """A sheet of images as annotated and, right of each, as found.

    Args:
        images: of each its name, uint8 (3, height, width), its objects and its detections.
        threshold: detections with a lower score are left out.
    """
    pictures = []
    for name, image, target, detections in images:
        pictures.append((f"{Path(name).name}: annotated", draw_objects(image, target, classes)))
        pictures.append((f"found, score from {threshold:g}", draw_objects(image, detections, classes, threshold)))
    draw_sheet(pictures, path)


def draw_precision_recall(curves: Mapping[str, Sequence[np.ndarray]], classes: list[str], path: Path) -> None:
    """Precision over recall at an overlap of 0.50, a line a class, as PNG or whatever the path ends in.

    Args:
        curves: by title, each drawn beside the one before: of each class recall and precision, float64 (2, n); those of
            NaN alone, or empty, are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(1 + 5 * len(curves), 4.5), sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes[0], curves.items(), strict=True):
        for label, (name, curve) in enumerate(zip(classes, lines, strict=True)):
            line = curve[:, np.isfinite(curve).all(0)]
            if line.size:
                axis.plot(*line, label=name, color=[part / 255 for part in colour(label)], linewidth=1.3)
        axis.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall at an overlap of 0.50")
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    first = axes[0, 0]
    first.set_ylabel("precision")
    if first.lines and len(first.lines) <= 20:
        first.legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    kind = path.suffix.removeprefix(".")
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format=kind))
    plt.close(figure)
