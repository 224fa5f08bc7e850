"""What an evaluation of segmentation leaves: results.json, a sheet of predictions, tables for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from moco.runtime.device import Device
from moco.transfer.labels import equally_spaced
from moco.transfer.results import spelled, write_results_json
from moco.transfer.segmentation.evaluate import Evaluation
from moco.transfer.segmentation.inference import infer
from moco.transfer.segmentation.pictures import draw_predictions
from moco.transfer.segmentation.sets import SegmentationSet

EXAMPLES = 8
Example = tuple[str, Tensor, Tensor, Tensor]
"""Name, image, labels, predicted classes."""


def examples_of(model: nn.Module, images: SegmentationSet, device: Device, number: int = EXAMPLES) -> list[Example]:
    """Predictions for images at fixed places of a set, the same for every run; those that can be read."""

    def read(place: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        image, labels = images.read(place)
        return image, (image, labels)

    found = infer(model, read, equally_spaced(len(images), number), device, lambda *_: None)
    return [(images.name(place), *both, predicted) for place, both, predicted in found]


def write_results(
    folder: Path, evaluation: Evaluation, examples: Sequence[Example], about: dict[str, Any] | None = None
) -> Path:
    """Writes results.json and predictions.png into a folder, in the place of earlier ones.

    Args:
        examples: for predictions.png, which is not written without any.
        about: what else results.json holds: recipe, start, seed.

    Returns the path of results.json.
    """
    if examples:
        draw_predictions(examples, evaluation.classes, folder / "predictions.png")
    return write_results_json(folder, "segmentation", evaluation.to_dict(), about)


def results_table(evaluation: Evaluation) -> Table:
    """The numbers, and a line for each class."""
    numbers = ", ".join(f"{name} {value:.1f} %" for name, value in evaluation.numbers.items())
    table = Table(title=Text(f"{numbers}, {evaluation.images:,} images"), title_justify="left")
    table.add_column("class")
    for name in ("labelled pixels", "IoU (%)"):
        table.add_column(name, justify="right")
    for row in evaluation.per_class:
        table.add_row(Text(row["class"]), f"{row['pixels']:,}", spelled(row["IoU"]))
    return table
