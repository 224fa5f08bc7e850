"""The parts of the page that are text, tables and pictures."""

from typing import Any

from moco.diagnosis.doctor import SEVERITIES, Finding, diagnose
from moco.report.html import Html, joined, table, tag
from moco.report.metrics import KNOWN, read_accuracies
from moco.report.rerun import rerun
from moco.runs.config import Config, differences, to_dict
from moco.runs.folder import Run
from moco.runs.published import PUBLISHED
from moco.runs.recipes.recipes import RECIPES

Curves = dict[str, dict[str, list[Any]]]


def what_was_run(runs: list[Run], names: list[str], curves: list[Curves]) -> Html:
    """Of each run the settings that matter, its command and every option; of several, in what they differ."""
    configs = [run.config() for run in runs]
    cards = [_card(*of) for of in zip(runs, names, configs, curves, strict=True)]
    parts = [tag("div", *cards, class_="cards")]
    if len(runs) > 1:
        rows = [
            [name, ", ".join(differences(configs[0], config)) or "the same options"]
            for name, config in zip(names[1:], configs[1:], strict=True)
        ]
        parts.append(table(["run", f"in what it differs from {names[0]}"], rows, "Differences"))
    return joined(*parts)


def _card(run: Run, name: str, config: Config, curves: Curves) -> Html:
    training, contrast, views = config.training, config.contrast, config.views
    steps = [curve["step"][-1] for curve in curves.values()]
    planned = f"{training.iterations:,} steps" if training.iterations else f"{training.epochs} epochs"
    epoch = max((curve["epoch"][-1] or 0 for curve in curves.values()), default=0)
    recipe = RECIPES.get(config.recipe)
    rows: list[tuple[str, Any]] = [
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
    command = rerun(config, f"{run.path}-again")
    options = [[f"{room}.{option}" if option else room, repr(value)] for room, option, value in _options(config)]
    return tag(
        "article",
        tag("h3", name),
        _facts(rows),
        tag("p", "Run it again:"),
        tag("pre", tag("code", *_words(command)), tabindex="0"),
        tag("button", "Copy", class_="copy", type="button", aria_label=f"Copy the command of {name}"),
        tag("details", tag("summary", "Every option"), table(["option", "value"], options)),
    )


def _words(command: str) -> list[Html]:
    """Words that are not broken at their hyphens."""
    return [joined(" " if i else "", tag("span", word)) for i, word in enumerate(command.split(" "))]


def _facts(rows: list[tuple[str, Any]]) -> Html:
    return tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in rows))


def _dictionary(config: Config) -> str:
    contrast = config.contrast
    return {
        "moco": f"queue of {contrast.queue_size:,} keys, momentum {contrast.key_momentum:g}",
        "end-to-end": f"the mini-batch, {config.training.batch_size} keys",
        "memory-bank": f"{contrast.queue_size:,} keys drawn from one per image, momentum {contrast.bank_momentum:g}",
        "moco-v3": f"the mini-batch, {config.training.batch_size} keys, momentum {contrast.key_momentum:g} rising to 1",
    }[contrast.mechanism]


def _options(config: Config) -> list[tuple[str, str, Any]]:
    return [
        row
        for room, content in to_dict(config).items()
        for row in ([(room, k, v) for k, v in content.items()] if isinstance(content, dict) else [(room, "", content)])
    ]


def findings(runs: list[Run], names: list[str]) -> Html:
    """What the doctor finds, the gravest first; empty where nothing is recorded yet."""
    asked = [(name, found) for name, run in zip(names, runs, strict=True) if (found := diagnose(run))]
    parts: list[Html] = []
    for name, found in asked:
        parts += [tag("h3", name)] if len(runs) > 1 else []
        parts.append(tag("div", *map(_finding, found), class_="cards"))
    return joined(*parts)


def _finding(finding: Finding) -> Html:
    severity = finding.severity
    more = [("evidence", finding.evidence), ("advice", finding.advice), ("source", finding.source)]
    return tag(
        "article",
        tag("h4", tag("span", SEVERITIES[severity], aria_hidden="true"), f" {severity}: {finding.name}"),
        tag("p", finding.text),
        _facts(more),
        class_=f"finding {severity}",
    )


def results(runs: list[Run], names: list[str], curves: list[Curves]) -> Html:
    """What the protocols and the monitor measured, beside what is published."""
    rows = []
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
    if not rows:
        return tag("p", "Nothing was measured yet: moco knn and moco linear write here what they find.")
    head = ["run", "protocol", "measured", "published", "source of what is published"]
    if not any(row[3] for row in rows):
        head, rows = head[:3], [row[:3] for row in rows]
    return joined(
        table(head, rows, "Accuracies in per cent", numbers=True),
        tag("button", "Download as CSV", class_="csv-of-table", type="button"),
    )


def _beside(value: float, key: tuple[str, str], comparable: bool = True) -> list[str]:
    published = PUBLISHED.get(key) if comparable else None
    return [f"{value:.1f}", *((f"{published.value:.1f}", published.source) if published else ("", ""))]


def numbers(names: list[str], curves: list[Curves]) -> Html:
    """The curves as a table: the first, the last, the least and the greatest value of each."""
    rows = []
    for name, curve in zip(names, curves, strict=True):
        for key, points in curve.items():
            values = [value for value in points["value"] if isinstance(value, int | float)]
            if values:
                title = KNOWN[key].title if key in KNOWN else key
                shown = (values[0], values[-1], min(values), max(values))
                rows.append([name, title, *(f"{value:.5g}" for value in shown)])
    if not rows:
        return tag("p", "There are no metrics yet.")
    head = ["run", "figure", "first", "last", "least", "greatest"]
    return joined(
        tag("button", "Download all metrics as CSV", id="csv-metrics", type="button"),
        tag("details", tag("summary", "The curves in numbers"), table(head, rows, "Curves in numbers", numbers=True)),
    )
