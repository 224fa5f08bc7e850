"""What the results of all tasks have in common: results.json, and how its numbers are written in tables."""

import json
import math
from pathlib import Path
from typing import Any

from moco.runtime.files import write_whole


def write_results_json(folder: Path, task: str, measured: dict[str, Any], about: dict[str, Any] | None) -> Path:
    """Writes results.json into a folder, in the place of an earlier one.

    Args:
        measured: what an evaluation measured.
        about: what else it holds: recipe, start, seed.

    Returns the path of results.json.
    """
    path = folder / "results.json"
    text = json.dumps({**(about or {}), "task": task, **measured}, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return path


def spelled(value: float | None) -> str:
    """A number in per cent to a tenth; "-" where there is nothing to measure."""
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
