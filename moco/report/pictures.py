"""Pictures of a run: its views and its curves."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from moco.data import ImageSet, Indices, Loader
from moco.diagnosis.records import Records
from moco.runs.folder import Run, read_lines
from moco.runtime.files import write_whole
from moco.views import Pretext, Views

PAIRS = 24
CELL, GAP, _CAPTION, _NAME = 128, 4, 16, 48
"""In pixels: a picture's side, what lies between two, a line of text, the names of a column of pictures."""
_ACROSS, _COLUMNS = 3, 12
"""Images side by side on a contact sheet, and with one view below the other."""


def draw_views(images: ImageSet, views: Views, path: Path) -> None:
    """The first pairs of views of epoch 0 as the encoder sees them, one above the other, as PNG."""
    first = images.subset(torch.arange(min(PAIRS, len(images))))
    plan = Indices(torch.zeros(len(first), dtype=torch.int64), torch.arange(len(first)))
    batch = next(iter(Loader(first, views, torch.device("cpu")).batches([plan])))
    columns = min(_COLUMNS, len(first))
    originals = [first.pixels(position) for position in batch.images.tolist()]
    stacks = [_bytes(shown(view, pretext)) for view, pretext in zip(batch.views, views.pretexts, strict=True)]
    names = ["view 1", "view 2"][: len(stacks)]
    if all(image.shape[1:] == stacks[0].shape[1:3] for image in originals):
        stacks, names = [torch.stack(originals).permute(0, 2, 3, 1).numpy(), *stacks], ["image", *names]
    step = CELL + GAP
    rows = -(-len(first) // columns) * len(stacks)
    sheet = Image.new("RGB", (_NAME + columns * step, rows * step + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for j, (stack, name) in enumerate(zip(stacks, names, strict=True)):
        for i, pixels in enumerate(stack):
            top = (i // columns * len(stacks) + j) * step + GAP
            sheet.paste(cell(pixels), (_NAME + i % columns * step, top))
            if i % columns == 0:
                draw.text((GAP, top + (CELL - _CAPTION) // 2), name, fill="black")
    write_whole(path, lambda file: sheet.save(file, "PNG"))


def draw_contacts(images: ImageSet, positions: Tensor, views: Views, path: Path, classes: list[str] | None) -> None:
    """A contact sheet as PNG: each image and its views of epoch 0, under its class or its name.

    Args:
        positions: int64 (n,), of images that can be read.
    """
    wide = (1 + views.count) * (CELL + GAP) + 4 * GAP
    high = _CAPTION + CELL + 3 * GAP
    sheet = Image.new("RGB", (min(_ACROSS, len(positions)) * wide, -(-len(positions) // _ACROSS) * high), "white")
    draw = ImageDraw.Draw(sheet)
    for k, position in enumerate(positions.tolist()):
        image = images.pixels(position)
        made = views(image[None], torch.tensor([position]), 0)
        sides = [shown(view, pretext)[0] for view, pretext in zip(made, views.pretexts, strict=True)]
        left, top = k % _ACROSS * wide + 2 * GAP, k // _ACROSS * high + GAP
        draw.text((left, top), _caption(images, position, classes)[-wide // 7 :], fill="black")
        pictures = [image.permute(1, 2, 0).numpy(), *map(_bytes, sides)]
        for j, picture in enumerate(pictures):
            sheet.paste(cell(picture), (left + j * (CELL + GAP), top + _CAPTION))
    write_whole(path, lambda file: sheet.save(file, "PNG"))


def _caption(images: ImageSet, position: int, classes: list[str] | None) -> str:
    if classes is not None and images.labels is not None and images.labels[position] >= 0:
        return classes[int(images.labels[position])]
    return Path(images.name(position)).name


def cell(pixels: np.ndarray) -> Image.Image:
    """uint8 (h, w, 3), whole, as large as fits; of a small picture the pixels are seen."""
    small = max(pixels.shape[:2]) < CELL
    method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return ImageOps.pad(Image.fromarray(pixels), (CELL, CELL), method, color="gainsboro")


def _bytes(values: np.ndarray) -> np.ndarray:
    """0..1 to uint8."""
    return (255 * values).round().astype(np.uint8)


def shown(view: Tensor, pretext: Pretext) -> np.ndarray:
    """Normalised (n, 3, h, w) to values in 0..1 that can be shown, (n, h, w, 3)."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in pretext.normalisation)
    return (view.float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def draw_curves(run: Run) -> Path:
    """The run's loss, contrastive accuracy and, with labels, kNN accuracy over the epochs: curves.png in its folder."""
    lines = read_lines(run.metrics)
    trained = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "knn" in line]
    chance = Records(run.config(), lines, []).chance
    panels = [
        (trained, "loss", "InfoNCE loss (nats)", 1),
        (trained, "accuracy", "contrastive accuracy (%)", 100),
        *([(evaluated, "knn", "kNN accuracy (%)", 100)] if evaluated else []),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.4))
    for axis, (rows, key, title, scale) in zip(axes, panels, strict=True):
        axis.plot(
            [row["epoch"] for row in rows], [scale * row[key] for row in rows], marker="o" if key == "knn" else ""
        )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(chance, color="grey", linestyle="--", linewidth=1)
    axes[0].annotate("chance", (0, chance), fontsize=8, color="grey", va="bottom")
    figure.suptitle(f"{run.config().recipe}  ({run.path.name})", x=0.01, ha="left", fontsize=10)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.15, top=0.82, wspace=0.2)
    path = run.path / "curves.png"
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    plt.close(figure)
    return path
