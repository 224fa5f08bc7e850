"""What an evaluation of segmentation leaves: results.json, a sheet of predictions, tables for the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from moco.runtime.device import Device
from moco.runtime.files import write_whole
from moco.transfer.segmentation.evaluate import Evaluation
from moco.transfer.segmentation.inference import infer
from moco.transfer.segmentation.pictures import draw_predictions
from moco.transfer.segmentation.sets import SegmentationSet

EXAMPLES = 8
Example = tuple[str, Tensor, Tensor, Tensor]
"""Name, image, labels, predicted classes."""


def examples_of(model: nn.Module, images: SegmentationSet, device: Device, number: int = EXAMPLES) -> list[Example]:
    """Predictions for images at fixed places of a set, the same for every run; those that can be read."""
    places = torch.linspace(0, len(images) - 1, min(number, len(images))).round().long().tolist()

    def read(place: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        image, labels = images.read(place)
        return image, (image, labels)

    found = infer(model, read, places, device, lambda *_: None)
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
    text = json.dumps({**(about or {}), "task": "segmentation", **evaluation.to_dict()}, indent=1) + "\n"
    path = folder / "results.json"
    write_whole(path, lambda file: file.write(text.encode()))
    return path


def results_table(evaluation: Evaluation) -> Table:
    """The numbers, and a line for each class."""
    numbers = ", ".join(f"{name} {value:.1f} %" for name, value in evaluation.numbers.items())
    table = Table(title=Text(f"{numbers}, {evaluation.images:,} images"), title_justify="left")
    table.add_column("class")
    for name in ("labelled pixels", "IoU (%)"):
        table.add_column(name, justify="right")
    for row in evaluation.per_class:
        iou = "-" if row["IoU"] is None else f"{row['IoU']:.1f}"
        table.add_row(Text(row["class"]), f"{row['pixels']:,}", iou)
    return table
