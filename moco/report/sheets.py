"""Sheets of pictures in rows: a query and what was found for it, a group of duplicates."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from moco.data import ImageSet
from moco.data.formats.decode import UnreadableImageError
from moco.report.pictures import CELL, GAP, cell
from moco.runtime.files import write_whole

_LINE = 13
"""Pixels of a line of text."""
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


class Cell(NamedTuple):
    """A picture of a sheet."""

    image: Callable[[], Tensor]
    """Gives the image, uint8 (3, h, w); where it raises UnreadableImageError, the cell stays grey."""
    lines: tuple[str, ...]
    """Text above it, cut to the width of the picture."""


def image_cell(images: ImageSet, index: int, *lines: str) -> Cell:
    """A picture of a set, under the last part of its name and some lines."""
    return Cell(lambda: images.pixels(index), (Path(images.name(index)).name, *lines))


def draw_rows(rows: Iterable[Sequence[Cell]], path: Path, across: int = 0) -> None:
    """Draws rows of pictures, as the path's ending has it: .png, or .jpg.

    Rows so short that two or more take no more than `across` pictures stand side by side.
    """
    rows = list(rows)
    text = _LINE * max((len(one.lines) for row in rows for one in row), default=0)
    wide, high = CELL + GAP, CELL + text + 2 * GAP
    columns = max((len(row) for row in rows), default=1)
    beside = max(1, min(across // columns, len(rows)))
    size = beside * (columns * wide + 4 * GAP), -(-len(rows) // beside) * high + GAP
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, one in enumerate(row):
            left, top = i % beside * (columns * wide + 4 * GAP) + j * wide + GAP, i // beside * high + GAP
            for number, line in enumerate(one.lines):
                draw.text((left, top + number * _LINE), _cut(draw, line), fill="black")
            try:
                picture = cell(one.image().permute(1, 2, 0).numpy())
            except UnreadableImageError:
                picture = Image.new("RGB", (CELL, CELL), "gainsboro")
            sheet.paste(picture, (left, top + text))
    write_whole(path, lambda file: sheet.save(file, SUFFIXES[path.suffix.lower()], quality=88))


def _cut(draw: ImageDraw.ImageDraw, line: str) -> str:
    """The end of a line, as that is what names differ in, where all of it is wider than a picture."""
    line = line.encode("ascii", "replace").decode() if not line.isprintable() else line
    if draw.textlength(line) <= CELL:
        return line
    while line and draw.textlength(f"..{line}") > CELL:
        line = line[1:]
    return f"..{line}"
