"""What was measured of a detector: numbers, a table of the classes, curves; as JSON and back."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moco.runtime.errors import UserError, one_line

Metric = Literal["voc07", "voc", "coco"]
_POINTS = 200
"""At most, of a curve that is kept."""


@dataclass
class ClassResult:
    """One class.

    Attributes:
        name: of the class.
        objects: that count: neither VOC's difficult ones nor COCO's crowds.
        numbers: AP and AP50 in per cent; with masks and keypoints also "mask AP", ... NaN without objects.
        curves: recall and precision at an overlap of 0.50, float64 (2, n), 0 to 1, of its boxes (""), and of its masks
            ("mask ") and keypoints ("keypoint ") where these are measured; n is at most 200.
    """

    name: str
    objects: int
    numbers: dict[str, float]
    curves: dict[str, np.ndarray]


@dataclass
class Evaluation:
    """What was measured on a set of images.

    Attributes:
        metric: "voc07" (11 points), "voc" (area under the curve) or "coco".
        images: that were evaluated.
        unreadable: images that are left out because they cannot be read.
        numbers: in per cent: AP (mean over overlaps 0.50 to 0.95), AP50, AP75, all means over the classes that have
            objects, and what else the metric has; with "mask " or "keypoint " before them those of masks and keypoints.
            NaN where there is nothing to measure.
        per_class: of each class.
    """

    metric: Metric
    images: int
    unreadable: int
    numbers: dict[str, float]
    per_class: list[ClassResult]

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return [each.name for each in self.per_class]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them: None for NaN."""
        return {
            "metric": self.metric,
            "images": self.images,
            "unreadable": self.unreadable,
            "numbers": _plain(self.numbers),
            "per_class": [
                {
                    "class": each.name,
                    "objects": each.objects,
                    **_plain(each.numbers),
                    **{f"{kind}curve": _rounded(curve) for kind, curve in each.curves.items()},
                }
                for each in self.per_class
            ],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Evaluation":
        """What `to_dict` made. Raises KeyError, TypeError or ValueError if it is something else."""
        per_class = []
        for row in values["per_class"]:
            lines = {key: v for key, v in row.items() if key.endswith("curve")}
            numbers = _numbers({key: v for key, v in row.items() if key not in ("class", "objects", *lines)})
            curves = {key.removesuffix("curve"): np.array(v, np.float64).reshape(2, -1) for key, v in lines.items()}
            per_class.append(ClassResult(str(row["class"]), int(row["objects"]), numbers, curves))
        counts = int(values["images"]), int(values["unreadable"])
        return cls(values["metric"], *counts, _numbers(values["numbers"]), per_class)


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a results.json. Raises UserError if it is not there or damaged."""
    try:
        return Evaluation.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no results of a detector that can be read: {one_line(error)}") from error


def thinned(curve: np.ndarray) -> np.ndarray:
    """At most 200 points of a curve (2, n), its ends among them."""
    n = curve.shape[1]
    return curve if n <= _POINTS else curve[:, np.linspace(0, n - 1, _POINTS).round().astype(int)]


def _rounded(curve: np.ndarray) -> list[list[float | None]]:
    return [[_or_none(round(value, 4)) for value in row] for row in curve.tolist()]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _plain(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: _or_none(value) for name, value in numbers.items()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {str(name): math.nan if value is None else float(value) for name, value in values.items()}
