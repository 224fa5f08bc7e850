"""The page of the transfer tables: a figure with a panel for each structure, and their tables."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from moco.reproduce.findings import t_95
from moco.runs.published import TRANSFER
from moco.runtime.files import write_whole
from moco.transfer.compare import Comparison, Entry
from moco.transfer.results import spelled

SHOWN = ("AP", "AP50", "AP75", "mask AP", "mIoU", "pixel accuracy")
"""The metrics of the tables, as far as they are measured."""


def write_transfer(comparisons: dict[str, Comparison], context: dict[str, Any], out: Path, name: str) -> Path:
    """Writes NAME.md, .png and .json into the folder `out`, and returns the page's path."""
    _draw(comparisons, out / f"{name}.png")
    measured = f"{context['machine']}, torch {context['torch']}, {context['date']}"
    lines = [
        f"# Transfer (section 4.2): at the scale of {context['scale']}",
        "",
        "The same network, schedule and labelled images, from several starts.",
        "",
        f"`{context['command']}`, {measured}. {context['setting']}".strip(),
        "",
        f"![the first metric over the number of labelled images]({name}.png)",
        "",
        "Means over the seeds ± their standard deviation, in per cent.",
        "",
    ]
    for title, comparison in comparisons.items():
        lines += [f"## {title}", "", *_table(comparison), "", *_gains(comparison), ""]
    if any(comparison.recipe not in TRANSFER for comparison in comparisons.values()):
        lines += _published()
    path = out / f"{name}.md"
    write_whole(path, lambda file: file.write("\n".join(lines).encode()))
    results = {title: [vars(entry) for entry in found.entries] for title, found in comparisons.items()}
    text = json.dumps({**context, "results": results}, indent=1) + "\n"
    write_whole(path.with_suffix(".json"), lambda file: file.write(text.encode()))
    return path


def _table(comparison: Comparison) -> list[str]:
    metrics = [metric for metric in SHOWN if metric in comparison.metrics]
    rows = [
        f"| {label(entry)} | {entry.labels} | {len(entry.numbers)} | {' | '.join(map(entry.text, metrics))} |"
        for entry in comparison.entries
    ]
    for each in TRANSFER.get(comparison.recipe, ()):
        figures = " | ".join(spelled(each.numbers.get(metric)) for metric in metrics)
        rows.append(f"| {each.start}, {each.source} | all | published | {figures} |")
    return [f"| start | labelled images | runs | {' | '.join(metrics)} |", f"|{' --- |' * (3 + len(metrics))}", *rows]


def label(entry: Entry) -> str:
    """What a start is called: of a path the last part."""
    return Path(entry.init).name


def _gains(comparison: Comparison) -> list[str]:
    """By how much each start is above random weights, with the 95 % interval of a difference of means."""
    metric = comparison.metrics[0]
    lines = []
    for entry in comparison.entries:
        base = next((e for e in comparison.entries if e.init == "random" and e.labels == entry.labels), None)
        if base is None or base is entry:
            continue
        n = len(entry.numbers)
        half = t_95(2 * n - 2) * math.sqrt((entry.std(metric) ** 2 + base.std(metric) ** 2) / n)
        about = "" if math.isnan(half) else f" ± {half:.1f}"
        lines.append(
            f"- {entry.labels} labelled images: {label(entry)} is {entry.mean(metric) - base.mean(metric):+.1f}{about} "
            f"points of {metric} from random weights."
        )
    return lines


def _published() -> list[str]:
    """The paper's own table, to compare orders with."""
    rows = [
        f"| {recipe} | {each.start} | {', '.join(f'{name} {value}' for name, value in each.numbers.items())} "
        f"| {each.source} |"
        for recipe, figures in TRANSFER.items()
        for each in figures
    ]
    head = ["## Published", "", "Of other data, encoders and lengths: to be compared in their order alone.", ""]
    return [*head, "| recipe | start | | source |", "| --- | --- | --- | --- |", *rows, ""]


def _draw(comparisons: dict[str, Comparison], path: Path) -> None:
    figure, axes = plt.subplots(1, len(comparisons), figsize=(1 + 3 * len(comparisons), 3.4), squeeze=False)
    for axis, (title, comparison) in zip(axes[0], comparisons.items(), strict=True):
        _draw_panel(axis, title, comparison)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(axis: Axes, title: str, comparison: Comparison) -> None:
    metric = comparison.metrics[0]
    styles = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-.")]
    inits = list(dict.fromkeys(entry.init for entry in comparison.entries))
    for number, init in enumerate(inits):
        own = [entry for entry in comparison.entries if entry.init == init]
        marker, line = styles[number % len(styles)]
        errors = [0 if math.isnan(entry.std(metric)) else entry.std(metric) for entry in own]
        means = [entry.mean(metric) for entry in own]
        beside = [place + 0.08 * (number - (len(inits) - 1) / 2) for place in range(len(own))]
        axis.errorbar(beside, means, errors, marker=marker, linestyle=line, capsize=3, label=label(own[0]))
    axis.set_xticks(range(len(own)), [entry.labels for entry in own])
    axis.set_xlim(-0.5, len(own) - 0.5)
    axis.set(xlabel="labelled images", ylabel=f"{metric} (%)")
    axis.set_title(title, loc="left", fontsize=10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
