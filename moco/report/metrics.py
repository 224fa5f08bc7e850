"""The metrics that a run has recorded, with a title and an explanation of each."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moco.diagnosis.records import Records
from moco.runs.folder import Run, read_lines

log = logging.getLogger("moco")


class Known(NamedTuple):
    """A metric of metrics.jsonl or timing.jsonl."""

    title: str
    unit: str
    """"%" for a share in 0..1, which is shown in per cent."""
    about: str
    """What to watch for, in a sentence."""


KNOWN = {
    "loss": Known("InfoNCE loss", "nats", "It starts near chance and should fall below it."),
    "accuracy": Known(
        "Contrastive accuracy", "%", "How often the positive wins against the whole dictionary; it should rise."
    ),
    "knn": Known(
        "kNN accuracy", "%", "Test images classified by their nearest training images: how good the features are."
    ),
    "positive_histogram": Known(
        "Cosines of positives and negatives",
        "cosine",
        "Positives should move to the right of the negatives, and negatives stay around 0.",
    ),
    "alignment": Known(
        "Alignment", "squared distance", "Between the two views of an image (Wang and Isola 2020): lower is closer."
    ),
    "uniformity": Known(
        "Uniformity", "log", "How evenly features cover the sphere (Wang and Isola 2020): lower is more even."
    ),
    "rank": Known(
        "Effective rank", "dimensions", "RankMe: how many dimensions the features use; a fall is a collapse."
    ),
    "feature_std": Known(
        "Feature std", "1 = uniform", "Standard deviation of each dimension times the square root of dim; 0: collapsed."
    ),
    "queue_real": Known("Real keys in the queue", "%", "The rest are the random keys that a queue starts with."),
    "key_age": Known("Age of the keys", "steps", "Mean over the queue; half of K / batch when it is full."),
    "key_drift": Known(
        "Consistency of the keys", "cosine", "Of stored keys with the same views encoded now: near 1 is consistent."
    ),
    "queue_share": Known("The queue's share of the data set", "%", "Near 100 % negatives repeat; small is safe."),
    "same_image": Known(
        "Keys of the query's own image", "in the queue", "Negatives that push two views of one image apart: near 0."
    ),
    "bn_leak": Known(
        "Leak through batch statistics",
        "%",
        "Contrastive accuracy without shuffled BN statistics less that with: near 0.",
    ),
    "gradient_norm": Known("Norm of the gradient", "", "A sudden rise comes before a divergence."),
    "lr": Known("Learning rate", "", "The schedule."),
    "images_per_second": Known("Speed", "images/s", "Mean since the run was started or continued."),
    "waiting": Known(
        "Waiting for data", "%", "Share of the time; above a few per cent data loading is the bottleneck."
    ),
}
"""In the order in which they are shown; a number of another name is shown after them."""

UNSHOWN = ("rank_of", "bn_groups", "diverged", "chance_loss", "keys_per_step", "images")
"""What only the doctor reads."""

HISTOGRAMS = ("positive_histogram", "negative_histogram")
"""Counts over equal intervals of the cosines -1..1."""


def read_curves(run: Run, known: Iterable[str] = KNOWN) -> dict[str, dict[str, list[Any]]]:
    """Every figure of a run by name: {"step": [...], "epoch": [...], "value": [...]}, those known first, in that order.

    A value that is not finite is None, as JSON has no other word for it; an epoch that is not known is None.
    """
    metrics = read_lines(run.metrics)
    timing = {line["step"]: line for line in read_lines(run.timing)}  # of a continued run, what was written last
    epochs = {line["step"]: line["epoch"] for line in metrics if _is_number(line.get("epoch"))}
    rate = max(((epoch / step, step) for step, epoch in epochs.items() if step), key=lambda pair: pair[1], default=None)
    curves: dict[str, dict[str, list[Any]]] = {}
    for line in [*metrics, *(timing[step] for step in sorted(timing))]:
        step = line["step"]
        epoch = epochs.get(step, step * rate[0] if rate else None)
        for name, value in _figures(line):
            curve = curves.setdefault(name, {"step": [], "epoch": [], "value": []})
            curve["step"].append(step)
            curve["epoch"].append(epoch)
            curve["value"].append(value)
    order = {name: place for place, name in enumerate(known)}
    return dict(sorted(curves.items(), key=lambda item: order.get(item[0], len(order))))


def _figures(line: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in line.items():
        if name in HISTOGRAMS and isinstance(value, list) and value and all(map(_is_number, value)):
            yield name, value
        elif name not in ("step", "epoch", *HISTOGRAMS, *UNSHOWN) and _is_number(value, finite=False):
            yield name, value if math.isfinite(value) else None


def _is_number(value: Any, finite: bool = True) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (not finite or math.isfinite(value))


def chance(run: Run) -> tuple[float, str]:
    """The loss at chance, and its formula."""
    config, records = run.config(), Records(run.config(), read_lines(run.metrics), [])
    log_batch = math.log(config.training.batch_size)
    losses = {
        "end-to-end": ("log(batch)", log_batch),
        "moco-v3": ("4 tau log(batch)", 4 * config.contrast.temperature * log_batch),
    }
    formula, loss = losses.get(config.contrast.mechanism, ("log(K+1)", math.log(config.contrast.queue_size + 1)))
    recorded = records.last("chance_loss")  # 0.1.0 recorded none
    return loss if recorded is None else recorded, f"chance, {formula}"


def read_json(path: Path) -> Any:
    """What a .json holds; None, and a warning, if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read and is left out: %s", path, error)
        return None


def read_accuracies(run: Run) -> list[dict[str, Any]]:
    """What the protocols measured: the JSON files in the run's folder that hold accuracies."""
    found = [read_json(path) for path in sorted(run.path.glob("*.json")) if path.name != "findings.json"]
    return [
        values
        for values in found
        if isinstance(values, dict)
        and isinstance(values.get("protocol"), str)
        and isinstance(values.get("accuracy"), dict)
        and all(map(_is_number, values["accuracy"].values()))
    ]
