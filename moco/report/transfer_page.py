"""The page about a run of detection or segmentation: one HTML file, made of what the run's folder holds."""

import base64
import re
from pathlib import Path
from typing import Any

from moco.report.metrics import KNOWN, Known, read_curves, read_json
from moco.report.page import render
from moco.report.rerun import rerun_transfer
from moco.report.sections import numbers
from moco.runs.folder import Run, read_values
from moco.runs.options import to_dict
from moco.runs.published import TRANSFER
from moco.runtime.files import write_whole
from moco.transfer.classification.recipes import CLASSIFICATION
from moco.transfer.detection.recipes import DETECTION
from moco.transfer.detection.results import METRICS, headline
from moco.transfer.results import spelled
from moco.transfer.segmentation.recipes import SEGMENTATION

_AP = {"AP": "0.50 to 0.95, the mean", "AP50": "0.50", "AP75": "0.75"}
_WHOSE = {"": "boxes", "mask ": "masks", "keypoint ": "keypoints"}
TRANSFER_KNOWN = {
    **{
        whose + name: Known(whose + name, "per cent", f"Average precision of {what} at overlaps of {overlap}.")
        for whose, what in _WHOSE.items()
        for name, overlap in _AP.items()
    },
    "mIoU": Known("mIoU", "per cent", "Intersection over union, the mean over the classes."),
    "pixel accuracy": Known("Pixel accuracy", "per cent", "Pixels whose class is right."),
    "loss": Known("Loss", "", "The sum of all losses, of which the gradient is."),
    "loss_rpn_cls": Known("RPN: object or not", "nats", "Cross-entropy of the sampled anchors."),
    "loss_rpn_loc": Known("RPN: boxes", "", "L1 distance of the deltas of positive anchors."),
    "loss_cls": Known("Box head: classes", "nats", "Cross-entropy of the sampled regions."),
    "loss_box_reg": Known("Box head: boxes", "", "Distance of the deltas of regions with an object."),
    "loss_mask": Known("Masks", "nats", "Cross-entropy of the pixels of true masks."),
    "loss_keypoint": Known("Keypoints", "nats", "Cross-entropy over the bins of the heat maps."),
    "cross_entropy": Known("Pixels", "nats", "Cross-entropy of the labelled pixels."),
    **{name: KNOWN[name] for name in ("lr", "gradient_norm", "images_per_second", "waiting")},
}
"""Metrics of a transfer run, in the order in which they are shown."""
_NUMBER = re.compile(r"(mask |keypoint )?A[PR]\d*[sml]?")
"""The metrics' many numbers, of which only those known have a curve."""
PICTURES = {
    "detections.png": "Test images as annotated, and as found",
    "predictions.png": "Test images, their labels, and what is predicted",
    "precision-recall.png": "Precision over recall",
}


def write_transfer_page(folder: Path, out: Path, recipe: dict[str, Any] | None = None) -> None:
    """Writes the page of the run in a folder, whole or not at all. What the folder does not hold is left out.

    Args:
        recipe: groups of options as config.yaml has them: the command that runs it again leaves out those like it;
            None: those of the run's own recipe.

    Raises UserError if there is no config.yaml that can be read.
    """
    page = build_transfer_page(folder, recipe or _recipe(folder)).encode()
    write_whole(out, lambda file: file.write(page))


def _recipe(folder: Path) -> dict[str, Any]:
    """The options of the run's recipe; {} if there is none of this name."""
    values = read_values(folder / "config.yaml")
    recipe = {**DETECTION, **SEGMENTATION, **CLASSIFICATION}.get(str(values.get("recipe")))
    return {} if recipe is None or recipe.config.task != values.get("task") else to_dict(recipe.config)


def build_transfer_page(folder: Path, recipe: dict[str, Any]) -> str:
    """The page as HTML."""
    config, measured, name = read_values(folder / "config.yaml"), _measured(folder), folder.resolve().name
    curves = {
        key: curve
        for key, curve in read_curves(Run(folder), TRANSFER_KNOWN).items()
        if key in TRANSFER_KNOWN or not _NUMBER.fullmatch(key)
    }
    known = [(title, uri) for file, title in PICTURES.items() if (uri := _uri(folder / file))]
    sections: list[tuple[str, str, Any]] = [
        ("runs", "What was run", _what_was_run(folder, name, config, recipe, curves)),
        ("results", "Results", _results(config, measured)),
        ("classes", "Classes", _classes(measured)),
        ("images", "Pictures", known),
        ("curves", "Curves", numbers([name], [curves], TRANSFER_KNOWN)),
    ]
    data = {"runs": [{"name": name, "curves": curves}], "known": TRANSFER_KNOWN, "histograms": []}
    shown = [section for section in sections if section[2] or section[0] == "curves"]
    return render([name], shown, data, ("page", "histogram", "curves"))


def _measured(folder: Path) -> dict[str, Any]:
    """What results.json holds; {} if it is not there, or of another kind."""
    path = folder / "results.json"
    values = read_json(path) if path.exists() else None
    if not isinstance(values, dict):
        return {}
    whole = isinstance(values.get("numbers"), dict) and isinstance(values.get("per_class"), list)
    return values if whole else {}


def _what_was_run(
    folder: Path, name: str, config: dict[str, Any], recipe: dict[str, Any], curves: dict[str, Any]
) -> dict[str, Any]:
    groups = {group: content for group, content in config.items() if isinstance(content, dict)}
    options = [[f"{group}.{option}", repr(v)] for group, content in groups.items() for option, v in content.items()]

    def option(group: str, key: str) -> Any:
        return groups.get(group, {}).get(key)

    steps = [curve["step"][-1] for curve in curves.values()]
    structure, labels = option("model", "structure"), option("data", "labels")
    schedule = [
        f"{option('training', key):,} {what}" if isinstance(option("training", key), int) else ""
        for key, what in (("iterations", "steps"), ("batch_size", "images a step"))
    ]
    facts = [
        ("recipe", config.get("recipe")),
        ("started from", option("encoder", "init")),
        ("encoder", option("encoder", "encoder")),
        ("structure", structure and {"c4": "C4", "dc5": "dilated C5", "fpn": "FPN"}.get(structure, structure)),
        ("images", option("data", "source")),
        ("labels", labels),
        ("schedule", ", ".join(filter(None, [*schedule, f"lr {option('training', 'lr')}"]))),
        ("seed", option("training", "seed")),
        ("so far", f"step {max(steps):,}" if steps else "no metrics yet"),
    ]
    command = rerun_transfer(config, recipe, f"{folder}-again")
    run = {"name": name, "facts": [fact for fact in facts if fact[1] is not None], "command": command}
    return {"runs": [{**run, "options": options}], "differences": []}


def _results(config: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """The run's numbers, and below them the published ones of its recipe."""
    found, published = measured.get("numbers", {}), TRANSFER.get(str(config.get("recipe")), ())
    columns = headline(found) or list(found)
    rows = [["this run", *(_shown(found[name]) for name in columns), ""]] if found else []
    rows += [[p.start, *(spelled(p.numbers.get(name)) for name in columns), p.source] for p in published if found]
    if not published:
        rows = [row[:-1] for row in rows]
    metric = str(measured.get("metric"))
    images, unreadable = measured.get("images", 0), measured.get("unreadable", 0)
    without = f", without {unreadable} that cannot be read" if unreadable else ""
    return {
        "head": ["", *columns, *(["published in"] if published else [])],
        "rows": rows,
        "align": "numbers wide sourced" if published else "numbers wide",
        "more": [[name, _shown(value)] for name, value in found.items()] if len(found) > len(columns) else [],
        "caption": f"{METRICS.get(metric, metric)}, in per cent, on {images} test images{without}",
        "empty": f"Nothing is evaluated yet: moco {config.get('task', 'detect')} RUN --eval-only does.",
    }


def _classes(measured: dict[str, Any]) -> dict[str, Any]:
    rows = [row for row in measured.get("per_class", []) if isinstance(row, dict)]
    if not rows:
        return {}
    columns = [key for key in rows[0] if key != "curve"]
    table = [[_shown(row.get(key)) for key in columns] for row in rows]
    return {"head": columns, "rows": table, "caption": "Numbers in per cent"}


def _shown(value: Any) -> str:
    """A count, a number in per cent, a name."""
    if value is None or (isinstance(value, float) and not isinstance(value, bool)):
        return spelled(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _uri(path: Path) -> str:
    """A picture as the page holds it; "" if it is not there."""
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""
