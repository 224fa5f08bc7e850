"""What an evaluation of a classifier leaves: results.json, the confusion matrix as a picture, a table."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from moco.runtime.files import write_whole
from moco.transfer.results import spelled, write_results_json

TOP = 5
_MATRIX, _NUMBERS, _ROWS = 200, 25, 30
"""Classes up to which the confusion matrix is kept, up to which its cells have numbers, and rows of the table."""


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of a classifier on test images.

    Attributes:
        classes: their names.
        confusion: int64 (classes, classes): how many images of a class (row) were predicted to be of another (column).
        in_top: how many images have their class among the first five predicted; None where only one is.
    """

    classes: list[str]
    confusion: Tensor
    in_top: int | None = None

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def per_class(self) -> list[float]:
        """In percent; NaN of a class without test images."""
        return (100 * self.confusion.diagonal().double() / self.confusion.sum(dim=1)).tolist()

    @property
    def numbers(self) -> dict[str, float]:
        """By metric, in percent: top-1, top-5 of more than five classes, the mean of the classes' accuracies."""
        found = {"top-1": 100 * int(self.confusion.diagonal().sum()) / self.images}
        if self.in_top is not None and len(self.classes) > TOP:
            found["top-5"] = 100 * self.in_top / self.images
        present = [value for value in self.per_class if not math.isnan(value)]
        return found | {"mean of classes": sum(present) / len(present)}


def accuracies(ranked: Tensor, labels: Tensor, classes: list[str]) -> Accuracies:
    """From the classes predicted for each image, the likeliest first, int64 (n, 1 to 5), and its own, int64 (n,)."""
    count = len(classes)
    confusion = (labels * count + ranked[:, 0]).bincount(minlength=count**2).view(count, count)
    in_top = int((ranked == labels[:, None]).any(dim=1).sum()) if ranked.shape[1] > 1 else None
    return Accuracies(classes, confusion, in_top)


def write_results(folder: Path, found: Accuracies, about: dict[str, Any], trained: list[int]) -> Path:
    """Writes results.json and confusion.png into a folder, in the place of earlier ones; the path of results.json.

    Args:
        about: what else results.json holds: recipe, start, seed.
        trained: of each class, how many images were trained on.
    """
    tested = found.confusion.sum(dim=1).tolist()
    rows = zip(found.classes, found.per_class, tested, trained, strict=True)
    values: dict[str, Any] = {
        "numbers": found.numbers,
        "images": found.images,
        "per_class": [
            {
                "class": name,
                "accuracy": None if math.isnan(value) else value,
                "test_images": test,
                "training_images": train,
            }
            for name, value, test, train in rows
        ],
    }
    if len(found.classes) <= _MATRIX:
        values["confusion"] = found.confusion.tolist()
        draw_confusion(found, folder / "confusion.png")
    return write_results_json(folder, "classification", values, about)


def class_table(found: Accuracies, trained: list[int]) -> Table:
    """The accuracy of each class, of many classes the lowest ones."""
    tested = found.confusion.sum(dim=1)
    order = list(range(len(found.classes)))
    title = f"accuracy by class, {found.images:,} test images"
    if len(order) > _ROWS:
        order = sorted((k for k in order if tested[k]), key=lambda k: found.per_class[k])[:_ROWS]
        title += f": the {_ROWS} lowest"
    table = Table(title=Text(title), title_justify="left")
    for column in ("class", "accuracy", "test images", "training images", "most often taken for"):
        table.add_column(column, justify="left" if column in ("class", "most often taken for") else "right")
    for k in order:
        others = found.confusion[k].clone()
        others[k] = 0
        wrong = f"{found.classes[int(others.argmax())]} ({int(others.max())})" if others.any() else ""
        value = found.per_class[k]
        cells = [spelled(value), f"{int(tested[k]):,}", f"{trained[k]:,}", wrong]
        table.add_row(*map(Text, [found.classes[k], *cells]))
    return table


def draw_confusion(found: Accuracies, path: Path) -> None:
    """The confusion matrix as PNG: in each row the shares of a class' images, which sum to 100 %."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shares = 100 * found.confusion.double() / found.confusion.sum(dim=1, keepdim=True).clamp(min=1)
    count = len(found.classes)
    side = min(14.0, max(3.6, 1.8 + 0.42 * count))
    figure, axis = plt.subplots(figsize=(side, side))
    image = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in found.classes]
    size = 8 if count <= _NUMBERS else max(2.0, 200 / count)
    axis.set_xticks(range(count), names, rotation=90, fontsize=size)
    axis.set_yticks(range(count), names, fontsize=size)
    if count <= _NUMBERS:
        for row, column in torch.cartesian_prod(torch.arange(count), torch.arange(count)).tolist():
            value = float(shares[row, column])
            if value >= 0.5:
                shade = "white" if value > 55 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("class")
    axis.set_title(f"% of each class' test images; top-1 {found.numbers['top-1']:.1f}", fontsize=9)
    figure.colorbar(image, fraction=0.045, pad=0.03)
    figure.tight_layout()
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    plt.close(figure)
