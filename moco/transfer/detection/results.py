"""What an evaluation of a detector leaves: results.json, curves, a sheet of detections, tables for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import Tensor

from moco.runs.published import TRANSFER
from moco.runtime.device import Device
from moco.transfer.detection.dataset import DetectionSet
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.evaluation.evaluate import PREFIX
from moco.transfer.detection.evaluation.evaluation import Evaluation
from moco.transfer.detection.inference import infer
from moco.transfer.detection.instances import Detections, Target
from moco.transfer.detection.pictures import draw_beside_truth, draw_precision_recall
from moco.transfer.labels import equally_spaced
from moco.transfer.results import spelled, write_results_json

EXAMPLES = 12
HEADLINE = ("AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75", "keypoint AP", "keypoint AP50", "keypoint AP75")
"""The numbers of the tables, as far as they are measured."""
METRICS = {
    "voc07": "VOC's average precision at 11 recalls",
    "voc": "VOC's average precision, the area under the curve",
    "coco": "COCO's average precision",
}
Example = tuple[str, Tensor, Target, Detections]
"""Name, uint8 (3, height, width), objects, detections, all in the image's own pixels."""


def examples_of(
    detector: Detector, images: DetectionSet, device: Device, *, side: int, maximum: int = 1333, number: int = EXAMPLES
) -> list[Example]:
    """Detections of a dozen images at fixed places of a set, the same for every run; those that can be read.

    Args:
        side, maximum: as in `infer`.
    """

    def read(place: int) -> tuple[Tensor, tuple[Tensor, Target]]:
        image = images.image(place)
        return image, (image, images.target(place))

    found = infer(
        detector, read, equally_spaced(len(images), number), device, lambda *_: None, side=side, maximum=maximum
    )
    return [(images.name(place), *more, detections) for place, more, detections in found]


def write_results(
    folder: Path, evaluation: Evaluation, examples: Sequence[Example], about: dict[str, Any] | None = None
) -> Path:
    """Writes results.json, precision-recall.png and detections.png into a folder, in the place of earlier ones.

    Args:
        examples: for detections.png, which is not written without any.
        about: what else results.json holds: recipe, start, seed.

    Returns the path of results.json.
    """
    if examples:
        draw_beside_truth(examples, evaluation.classes, folder / "detections.png")
    curves = {}
    for name, kind in PREFIX.items():
        if (ap50 := f"{kind}AP50") in evaluation.numbers:
            title = f"{name}, AP50 {spelled(evaluation.numbers[ap50])}"
            curves[title] = [each.curves[kind] for each in evaluation.per_class]
    draw_precision_recall(curves, evaluation.classes, folder / "precision-recall.png")
    return write_results_json(folder, "detection", evaluation.to_dict(), about)


def headline(numbers: dict[str, float]) -> list[str]:
    """Which of a table's numbers were measured."""
    return [name for name in HEADLINE if name in numbers]


def results_table(evaluation: Evaluation, recipe: str = "", title: str = "this run") -> Table:
    """The numbers of a run, and below it the published ones of its recipe, by what training started from."""
    columns, published = headline(evaluation.numbers), TRANSFER.get(recipe, ())
    table = Table(title=Text(f"{METRICS[evaluation.metric]}, {evaluation.images:,} images"), title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    if published:
        table.add_column("published in")
    table.add_row(title, *(spelled(evaluation.numbers[name]) for name in columns), end_section=True)
    for row in published:
        table.add_row(row.start, *(spelled(row.numbers.get(name)) for name in columns), row.source)
    return table


def class_table(evaluation: Evaluation) -> Table:
    """A line for each class: how many objects, and its numbers."""
    columns = list(evaluation.per_class[0].numbers) if evaluation.per_class else []
    table = Table(title="classes", title_justify="left")
    table.add_column("class")
    for name in ("objects", *columns):
        table.add_column(name, justify="right")
    for each in evaluation.per_class:
        table.add_row(Text(each.name), f"{each.objects:,}", *(spelled(each.numbers[name]) for name in columns))
    return table
