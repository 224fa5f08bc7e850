"""What the page's sections of text and tables hold."""

from collections.abc import Mapping
from typing import Any

from moco.diagnosis.doctor import Finding, diagnose
from moco.report.metrics import KNOWN, Known, read_accuracies
from moco.report.rerun import rerun
from moco.runs.config import MAY_CHANGE, Config
from moco.runs.folder import Run
from moco.runs.options import differences, to_dict
from moco.runs.published import PUBLISHED
from moco.runs.recipes.recipes import RECIPES

Curves = dict[str, dict[str, list[Any]]]
Row = list[Any]


def what_was_run(runs: list[Run], names: list[str], curves: list[Curves]) -> dict[str, Any]:
    """`runs`: of each its settings, command and options; `differences`: a row of each other run's to the first."""
    configs = [run.config() for run in runs]
    return {
        "runs": [
            {
                "name": name,
                "facts": facts(config, curve),
                "command": rerun(config, f"{run.path}-again"),
                "options": [[option, repr(value)] for option, value in _options(config)],
            }
            for run, name, config, curve in zip(runs, names, configs, curves, strict=True)
        ],
        "differences": [
            [name, ", ".join(differences(configs[0], config, MAY_CHANGE)) or "the same options"]
            for name, config in zip(names[1:], configs[1:], strict=True)
        ],
    }


def facts(config: Config, curves: Curves) -> list[tuple[str, Any]]:
    """The settings that matter, and how far the run is."""
    training, contrast, views = config.training, config.contrast, config.views
    steps = [curve["step"][-1] for curve in curves.values()]
    planned = f"{training.iterations:,} steps" if training.iterations else f"{training.epochs} epochs"
    epoch = max((curve["epoch"][-1] or 0 for curve in curves.values()), default=0)
    recipe = RECIPES.get(config.recipe)
    return [
        ("recipe", f"{config.recipe}: {recipe.about}" if recipe else config.recipe),
        ("images", config.data.source),
        ("views", f"{views.views}, {views.image_size} pixels"),
        ("encoder", config.encoder.encoder + (", small stem" if config.encoder.small_stem else "")),
        ("mechanism", f"{contrast.mechanism}, {contrast.head} head of {contrast.dim} dimensions"),
        ("dictionary", _dictionary(config)),
        ("temperature", f"{contrast.temperature:g}"),
        ("schedule", f"{planned}, batch {training.batch_size}, {training.schedule}, lr {training.lr:g}"),
        ("seed", training.seed),
        ("so far", f"step {max(steps):,}, epoch {epoch:.4g}" if steps else "no metrics yet"),
    ]


def _dictionary(config: Config) -> str:
    contrast = config.contrast
    return {
        "moco": f"queue of {contrast.queue_size:,} keys, momentum {contrast.key_momentum:g}",
        "end-to-end": f"the mini-batch, {config.training.batch_size} keys",
        "memory-bank": f"{contrast.queue_size:,} keys drawn from one per image, momentum {contrast.bank_momentum:g}",
        "moco-v3": f"the mini-batch, {config.training.batch_size} keys, momentum {contrast.key_momentum:g} rising to 1",
    }[contrast.mechanism]


def _options(config: Config) -> list[tuple[str, Any]]:
    """Every option as GROUP.NAME and its value."""
    return [
        row
        for group, content in to_dict(config).items()
        for row in (
            [(f"{group}.{name}", value) for name, value in content.items()]
            if isinstance(content, dict)
            else [(group, content)]
        )
    ]


def findings(runs: list[Run], names: list[str]) -> list[tuple[str, list[Finding]]]:
    """The doctor's findings of each run, the gravest first; without the runs that have recorded nothing yet."""
    return [(name, found) for name, run in zip(names, runs, strict=True) if (found := diagnose(run))]


def results(runs: list[Run], names: list[str], curves: list[Curves]) -> dict[str, Any]:
    """`head` and `rows` of a table: what the protocols and the monitor measured, beside what is published."""
    rows: list[Row] = []
    for run, name, curve in zip(runs, names, curves, strict=True):
        recipe, measured = run.config().recipe, read_accuracies(run)
        for protocol in measured:
            key = (recipe, protocol["protocol"])
            for what, value in protocol["accuracy"].items():
                rows.append([name, f"{protocol['protocol']}, {what}", *_beside(100 * value, key, what == "top-1")])
        monitored = [value for value in curve.get("knn", {"value": []})["value"] if value is not None]
        if monitored:
            rows.append([name, "kNN while training, last", *_beside(100 * monitored[-1], (recipe, "knn"))])
            if len(monitored) > 1:
                rows.append([name, "kNN while training, first", *_beside(100 * monitored[0], ("", ""))])
    head = ["run", "protocol", "measured", "published", "source of the published figure"]
    if not any(row[3] for row in rows):
        head, rows = head[:3], [row[:3] for row in rows]
    empty = "Nothing is evaluated yet: moco knn RUN and moco linear RUN add their accuracies here."
    text = {"caption": "Accuracies in per cent", "empty": empty}
    return {"head": head, "rows": rows, "align": True, "more": [], **text}


def _beside(value: float, key: tuple[str, str], comparable: bool = True) -> list[str]:
    published = PUBLISHED.get(key) if comparable else None
    return [f"{value:.1f}", *((f"{published.value:.1f}", published.source) if published else ("", ""))]


def numbers(names: list[str], curves: list[Curves], known: Mapping[str, Known] = KNOWN) -> list[Row]:
    """The curves as rows of a table: the first, the last, the least and the greatest value of each."""
    rows: list[Row] = []
    for name, curve in zip(names, curves, strict=True):
        for key, points in curve.items():
            values = [value for value in points["value"] if isinstance(value, int | float)]
            if values:
                title = known[key].title if key in known else key
                shown = (values[0], values[-1], min(values), max(values))
                rows.append([name, title, *(f"{value:.5g}" for value in shown)])
    return rows
