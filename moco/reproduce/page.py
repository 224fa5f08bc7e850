"""What a grid leaves to read: a figure like the paper's, a table, and a page around them."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moco.files import write_whole
from moco.reproduce.experiments import MEASURES, Cell, Claim, Experiment, Measure
from moco.reproduce.findings import Finding, Measured, Results, examine, measured
from moco.reproduce.grid import Job
from moco.run import Run, read_lines

_STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-")]
"""Marker and line of each series: they differ without colour too."""


def write_page(
    experiment: Experiment, jobs: list[Job], claims: list[Claim], results: Results, context: dict[str, Any], out: Path
) -> Path:
    """Writes EXPERIMENT-SCALE.md, its figures and .json into the folder `out`, and returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    name = f"{experiment.name}-{context['scale']}"
    cells = list({(job.cell.series, job.cell.x): job.cell for job in jobs}.values())
    findings = [examine(claim, results) for claim in claims]
    figures = []
    if experiment.axis != "epoch":
        _draw_over_x(experiment, cells, results, out / f"{name}.png")
        figures.append(f"{name}.png")
    if max(len(_curve(Run(job.folder), "knn")) for job in jobs) > 2:
        _draw_curves(jobs, out / f"{name}-curves.png")
        figures.append(f"{name}-curves.png")
    page = _page(experiment, cells, results, findings, context, figures)
    write_whole(out / f"{name}.md", lambda file: file.write(page.encode()))
    everything = {**context, "results": [result for runs in results.values() for result in runs]}
    text = json.dumps(everything, indent=1) + "\n"
    write_whole(out / f"{name}.json", lambda file: file.write(text.encode()))
    return out / f"{name}.md"


def _page(
    experiment: Experiment,
    cells: list[Cell],
    results: Results,
    findings: list[Finding],
    context: dict[str, Any],
    figures: list[str],
) -> str:
    done = sum(len(runs) for runs in results.values())
    lines = [
        f"# {experiment.title}: at the scale of {context['scale']}",
        "",
        f"{experiment.asks} {experiment.note}".strip(),
        "",
        f"`{context['command']}`, {context['machine']}, torch {context['torch']}, {context['date']}: "
        f"{done} of {context['runs']} runs. {context['setting']}",
        "",
        *(f"![{experiment.title}]({figure})" for figure in figures),
        "",
        *table(experiment, cells, results),
        "",
        *_untrained(results),
        "Means over the seeds, with their standard deviation; the published figures are of other data, encoders and "
        "lengths, and are to be compared in their order alone."
        if context["scale"] != "imagenet"
        else "Means over the seeds, with their standard deviation.",
        "",
        "## Which of the findings show",
        "",
        "| finding of the paper | here | |",
        "| --- | --- | --- |",
        *(f"| {finding.claim.says} | {_difference(finding)} | {finding.verdict} |" for finding in findings),
        "",
        "A difference is of two means, in points; behind it half of its 95 % interval, from the spread between "
        "seeds of all settings.",
        "",
    ]
    return "\n".join(lines)


def _untrained(results: Results) -> list[str]:
    """What the encoder with random weights has, to see what was learned at all."""
    values = [100 * run["untrained_knn"] for runs in results.values() for run in runs if "untrained_knn" in run]
    if not values:
        return []
    return [f"With random weights, before the first step, the kNN accuracy is {statistics.fmean(values):.1f}.", ""]


def _difference(finding: Finding) -> str:
    if math.isnan(finding.difference):
        return ""
    spread = "" if finding.uncertainty is None else f" ± {finding.uncertainty:.1f}"
    return f"{finding.difference:+.1f}{spread} ({finding.claim.measure})"


def table(experiment: Experiment, cells: list[Cell], results: Results) -> list[str]:
    """A line for each setting: what was measured, and what is published."""
    published = any(cell.published for cell in cells)
    memory = any(run.get("memory_mb") for runs in results.values() for run in runs)
    timed = all("seconds" in run for runs in results.values() for run in runs)
    head = [
        "",
        experiment.axis if any(cell.x != "" for cell in cells) else "",
        *(MEASURES[measure] for measure in experiment.measures),
        *(["minutes a run"] if timed else []),
        *(["GPU memory"] if memory else []),
    ]
    lines = [head + (["published", "source"] if published else []), ["---"] * (len(head) + 2 * published)]
    for cell in cells:
        runs = results.get((cell.series, cell.x), [])
        row = [cell.series, cell.spelled, *(told(measured(runs, measure)) for measure in experiment.measures)]
        if timed:
            row.append(f"{statistics.fmean(run['seconds'] for run in runs) / 60:.1f}" if runs else "")
        if memory:
            row.append(f"{max(run.get('memory_mb', 0) for run in runs):,.0f} MB" if runs else "")
        if published:
            row += [f"{cell.published.value:.1f}", cell.published.source] if cell.published else ["", ""]
        lines.append(row)
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def told(value: Measured) -> str:
    """45.1 ± 0.3, and how many diverged."""
    diverged = f"{value.diverged} diverged" if value.diverged else ""
    if not value.seeds:
        return diverged or "not measured"
    spread = "" if value.spread is None else f" ± {value.spread:.1f}"
    return f"{value.mean:.1f}{spread}" + (f" ({diverged})" if diverged else "")


def _series(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.series for cell in cells))


def _draw_over_x(experiment: Experiment, cells: list[Cell], results: Results, path: Path) -> None:
    """A line for each series over x, with the spread over seeds; the published figures on an axis of their own."""
    with_published = any(cell.published for cell in cells)
    figure, axes = plt.subplots(1, 1 + with_published, figsize=(6.5 + 4.5 * with_published, 4), squeeze=False)
    places = _places(cells)
    for style, series in zip(_STYLES, _series(cells), strict=False):
        own = [cell for cell in cells if cell.series == series]
        here = [measured(results.get((cell.series, cell.x), []), experiment.measures[0]) for cell in own]
        _line(axes[0, 0], style, series, own, [m.mean for m in here], [m.spread or 0 for m in here], places)
        if with_published:
            values = [cell.published.value if cell.published else math.nan for cell in own]
            _line(axes[0, 1], style, series, own, values, None, places)
    axes[0, 0].set_title("measured here", loc="left", fontsize=10)
    axes[0, 0].set_ylabel(MEASURES[experiment.measures[0]])
    if with_published:
        axes[0, 1].set_title("published, at its own scale", loc="left", fontsize=10)
    for axis in axes.flat:
        ticks = dict(sorted((places[cell.x], cell.spelled) for cell in cells))
        axis.set_xticks(list(ticks), list(ticks.values()))
        axis.set_xlabel(experiment.axis)
        _finish(axis, len(_series(cells)) > 1)
    _save(figure, path)


def _places(cells: list[Cell]) -> dict[float | str, float]:
    """Where each x stands: sizes on a logarithmic scale, all else side by side."""
    values = list(dict.fromkeys(cell.x for cell in cells))
    if all(isinstance(x, int) for x in values):
        return {x: math.log2(x) for x in values if isinstance(x, int)}
    return {x: float(place) for place, x in enumerate(values)}


def _line(
    axis: Axes,
    style: tuple[str, str],
    label: str,
    cells: list[Cell],
    values: list[float],
    spreads: list[float] | None,
    places: dict[float | str, float],
) -> None:
    marker, dashes = style
    x = [places[cell.x] for cell in cells]
    axis.errorbar(x, values, yerr=spreads, marker=marker, linestyle=dashes, capsize=3, label=label)


def _draw_curves(jobs: list[Job], path: Path) -> None:
    """Pretext accuracy and kNN over the epochs: every seed thin, their mean thick."""
    panels: list[tuple[str, Measure]] = [("accuracy", "lookup"), ("knn", "knn")]
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4))
    for axis, (key, measure) in zip(axes, panels, strict=True):
        for number, label in enumerate(dict.fromkeys(job.cell.label for job in jobs)):
            curves = [_curve(Run(job.folder), key) for job in jobs if job.cell.label == label]
            curves = [curve for curve in curves if curve]
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=f"C{number}", linewidth=0.6, alpha=0.5)
            if curves:
                length = min(map(len, curves))
                epochs = [epoch for epoch, _ in curves[0][:length]]
                means = [sum(curve[i][1] for curve in curves) / len(curves) for i in range(length)]
                style = _STYLES[number % len(_STYLES)][1]
                axis.plot(epochs, means, style, color=f"C{number}", linewidth=2, label=label)
        axis.set_title(MEASURES[measure].removesuffix(", second half"), loc="left", fontsize=10)
        axis.set_xlabel("epoch")
        _finish(axis, legend=True)
    _save(figure, path)


def _curve(run: Run, key: str) -> list[tuple[float, float]]:
    return [(line["epoch"], 100 * line[key]) for line in read_lines(run.metrics) if key in line]


def _finish(axis: Axes, legend: bool) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False, fontsize=9)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    write_whole(path, lambda file: figure.savefig(file, dpi=120, format="png"))
    plt.close(figure)
