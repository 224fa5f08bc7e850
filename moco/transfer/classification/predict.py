"""Predictions for files, as a table, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import Tensor

from moco.runtime.files import write_whole

_ROWS = 20
"""Images in the table."""


@dataclass(frozen=True)
class Prediction:
    """An image's likeliest classes, the likeliest first, and their probabilities in 0..1."""

    path: Path
    classes: list[str]
    probabilities: list[float]


def predictions(
    probabilities: Tensor, places: Tensor, paths: Sequence[Path], classes: list[str], top: int
) -> list[Prediction]:
    """From probabilities (n, classes) of the files at `places`, int64 (n,): of each the `top` likeliest classes."""
    values, ranked = probabilities.topk(min(top, len(classes)), dim=1)
    rows = zip(places.tolist(), values.tolist(), ranked.tolist(), strict=True)
    return [Prediction(paths[place], [classes[k] for k in order], shares) for place, shares, order in rows]


def write_predictions(found: Sequence[Prediction], out: Path) -> None:
    """Writes predictions as CSV (file, class, probability, class 2, ...) or, by the file's suffix, JSON."""
    if out.suffix == ".json":
        values: list[dict[str, Any]] = [
            {
                "file": str(each.path),
                "predictions": [
                    {"class": name, "probability": value}
                    for name, value in zip(each.classes, each.probabilities, strict=True)
                ],
            }
            for each in found
        ]
        text = json.dumps(values, indent=1) + "\n"
    else:
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        count = len(found[0].classes)
        header = ["file", "class", "probability"]
        writer.writerow(header + [f"{word} {k}" for k in range(2, count + 1) for word in ("class", "probability")])
        for each in found:
            pairs = zip(each.classes, each.probabilities, strict=True)
            writer.writerow([each.path, *(cell for name, value in pairs for cell in (name, f"{value:.6f}"))])
        text = written.getvalue()
    write_whole(out, lambda file: file.write(text.encode()))


def prediction_table(found: Sequence[Prediction]) -> Table:
    """The first images and their likeliest classes."""
    more = f", the first {_ROWS} of {len(found):,}" if len(found) > _ROWS else ""
    table = Table(title=Text(f"predictions{more}"), title_justify="left")
    for column in ("image", "class", "probability", "then"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for each in found[:_ROWS]:
        names, values = each.classes, each.probabilities
        then = ", ".join(f"{name} {value:.1%}" for name, value in zip(names[1:], values[1:], strict=True))
        table.add_row(*map(Text, [str(each.path), names[0], f"{values[0]:.1%}", then]))
    return table
