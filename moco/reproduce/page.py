"""The page of a grid: a plot like the paper's, a table, and which findings are reproduced."""

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

from moco.reproduce.experiment import MEASURES, Cell, Claim, Experiment, Measure
from moco.reproduce.findings import Finding, Measured, Results, examine, measured, ordering
from moco.reproduce.grid import Job, results_of
from moco.runs.folder import Run, read_lines
from moco.runtime.files import write_whole

_STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-")]
"""Marker and line of each series: they differ without colour too."""


def write_page(
    experiment: Experiment, jobs: list[Job], claims: list[Claim], context: dict[str, Any], out: Path, name: str
) -> Path:
    """Writes NAME.md, its figures and .json into the folder `out`, and returns the page's path."""
    cells, results = _cells(jobs), results_of(jobs)
    findings = [examine(claim, results) for claim in claims]
    figures = []
    if experiment.axis != "epoch":
        _draw_over_x(experiment, cells, results, out / f"{name}.png")
        figures.append(f"{name}.png")
    figures += _curves_of(jobs, out, name)
    lines = _head(experiment, context, sum(map(len, results.values())), figures)
    lines += [*table(experiment, cells, results), "", *_untrained(results), _MEANS[context["scale"] == "imagenet"], ""]
    if findings:
        lines += ["## Which of the findings are reproduced", "", ordering(findings), ""]
        lines += ["| finding of the paper | here | |", "| --- | --- | --- |"]
        lines += [f"| {finding.claim.text} | {_difference(finding)} | {finding.verdict} |" for finding in findings]
        lines += ["", _DIFFERENCES, ""]
    return _write(out / f"{name}.md", lines, context, results)


def write_varied(
    experiment: Experiment,
    option: str,
    grids: dict[str, list[Job]],
    claims: list[Claim],
    context: dict[str, Any],
    out: Path,
    name: str,
) -> Path:
    """The same of a grid that was run at several values of an option: how each finding changes with it."""
    results = {value: results_of(jobs) for value, jobs in grids.items()}
    findings = {
        claim.text: {value: examine(claim, found, results.values()) for value, found in results.items()}
        for claim in claims
    }
    _draw_varied(option, findings, out / f"{name}.png")
    done = sum(len(runs) for found in results.values() for runs in found.values())
    lines = _head(experiment, context, done, [f"{name}.png"])
    lines += [f"| finding of the paper | {' | '.join(f'{option} {value}' for value in grids)} |"]
    lines += [f"| --- |{' --- |' * len(grids)}"]
    for text, row in findings.items():
        found = (f"{_difference(finding)}: {finding.verdict}".removeprefix(": ") for finding in row.values())
        lines += [f"| {text} | {' | '.join(found)} |"]
    lines += ["", _DIFFERENCES, ""]
    for value, jobs in grids.items():
        lines += [f"## {option} {value}", "", ordering([row[value] for row in findings.values()]), ""]
        lines += [f"![{option} {value}]({figure})\n" for figure in _curves_of(jobs, out, f"{name}={value}")]
        lines += [*table(experiment, _cells(jobs), results[value]), ""]
        lines += _untrained(results[value])
    lines += [_MEANS[context["scale"] == "imagenet"], ""]
    return _write(out / f"{name}.md", lines, context, results)


_MEANS = (
    "Means over the seeds, with their standard deviation; the published figures are of other data, encoders and "
    "lengths, and are to be compared in their order alone.",
    "Means over the seeds, with their standard deviation.",
)
_DIFFERENCES = (
    "A difference is of two means, in points, ± half of its 95 % interval, from the standard deviation over seeds, "
    "pooled over all settings."
)


def _write(path: Path, lines: list[str], context: dict[str, Any], results: Any) -> Path:
    write_whole(path, lambda file: file.write("\n".join(lines).encode()))
    text = json.dumps({**context, "results": _plain(results)}, indent=1) + "\n"
    write_whole(path.with_suffix(".json"), lambda file: file.write(text.encode()))
    return path


def _plain(results: Any) -> Any:
    """Results without their keys, which each of them holds; of several grids by the value of the option."""
    if any(isinstance(found, dict) for found in results.values()):
        return {value: _plain(found) for value, found in results.items()}
    return [result for runs in results.values() for result in runs]


def _cells(jobs: list[Job]) -> list[Cell]:
    return list({(job.cell.series, job.cell.x): job.cell for job in jobs}.values())


def _head(experiment: Experiment, context: dict[str, Any], done: int, figures: list[str]) -> list[str]:
    return [
        f"# {experiment.title}: at the scale of {context['scale']}",
        "",
        f"{experiment.about} {experiment.note}".strip(),
        "",
        f"`{context['command']}`, {context['machine']}, torch {context['torch']}, {context['date']}: "
        f"{done} of {context['runs']} runs. {context['setting']}",
        "",
        *(f"![{experiment.title}]({figure})" for figure in figures),
        "",
    ]


def _untrained(results: Results) -> list[str]:
    """What the encoder with random weights has, to see what was learned at all."""
    values = [100 * run["untrained_knn"] for runs in results.values() for run in runs if "untrained_knn" in run]
    if not values:
        return []
    return [f"With random weights, before the first step, the kNN accuracy is {statistics.fmean(values):.1f}.", ""]


def _difference(finding: Finding) -> str:
    if math.isnan(finding.difference):
        return ""
    interval = "" if finding.uncertainty is None else f" ± {finding.uncertainty:.1f}"
    return f"{finding.difference:+.1f}{interval} ({finding.claim.measure})"


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
        row = [cell.series, cell.spelled, *(shown(measured(runs, measure)) for measure in experiment.measures)]
        if timed:
            row.append(f"{statistics.fmean(run['seconds'] for run in runs) / 60:.1f}" if runs else "")
        if memory:
            row.append(f"{max(run.get('memory_mb', 0) for run in runs):,.0f} MB" if runs else "")
        if published:
            row += [f"{cell.published.value:.1f}", cell.published.source] if cell.published else ["", ""]
        lines.append(row)
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def shown(value: Measured) -> str:
    """45.1 ± 0.3, and how many diverged."""
    diverged = f"{value.diverged} diverged" if value.diverged else ""
    if not value.seeds:
        return diverged or "not measured"
    std = "" if value.std is None else f" ± {value.std:.1f}"
    return f"{value.mean:.1f}{std}" + (f" ({diverged})" if diverged else "")


def _series(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.series for cell in cells))


def _draw_over_x(experiment: Experiment, cells: list[Cell], results: Results, path: Path) -> None:
    """A line for each series over x, with the standard deviation over seeds; published figures on their own axis."""
    measure = experiment.measures[0]
    published: dict[str, dict[float | str, float]] = {series: {} for series in _series(cells)}
    for cell in cells:
        if cell.published and cell.published.protocol == measure:
            published[cell.series][cell.x] = cell.published.value
    with_published = any(len(line) > 1 for line in published.values())  # a single figure is in the table
    figure, axes = plt.subplots(1, 1 + with_published, figsize=(6.5 + 4.5 * with_published, 4), squeeze=False)
    places = _places(cells)
    for style, series in zip(_STYLES, _series(cells), strict=False):
        own = [cell for cell in cells if cell.series == series]
        here = [measured(results.get((cell.series, cell.x), []), measure) for cell in own]
        _line(axes[0, 0], style, series, own, [m.mean for m in here], [m.std or 0 for m in here], places)
        if with_published:
            values = [published[series].get(cell.x, math.nan) for cell in own]
            _line(axes[0, 1], style, series, own, values, None, places)
    axes[0, 0].set_title("measured here", loc="left", fontsize=10)
    axes[0, 0].set_ylabel(MEASURES[measure])
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
    stds: list[float] | None,
    places: dict[float | str, float],
) -> None:
    marker, dashes = style
    x = [places[cell.x] for cell in cells]
    axis.errorbar(x, values, yerr=stds, marker=marker, linestyle=dashes, capsize=3, label=label)


def _draw_varied(option: str, findings: dict[str, dict[str, Finding]], path: Path) -> None:
    """The difference that each finding is about, over the values of the option; above 0 it is as in the paper."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    axis.axhline(0, color="0.5", linewidth=1)
    for number, (text, row) in enumerate(findings.items()):
        marker, dashes = _STYLES[number % len(_STYLES)]
        x = [place + 0.06 * number for place in range(len(row))]
        intervals = [finding.uncertainty or 0 for finding in row.values()]
        values = [finding.difference for finding in row.values()]
        axis.errorbar(x, values, yerr=intervals, marker=marker, linestyle=dashes, capsize=3, label=text)
    (row, *_) = findings.values()
    axis.set_xticks(range(len(row)), list(row))
    axis.set_xlabel(option)
    axis.set_ylabel("difference in points, with its 95 % interval")
    _finish(axis, legend=False)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    _save(figure, path)


def _curves_of(jobs: list[Job], out: Path, name: str) -> list[str]:
    """Draws NAME-curves.png where runs were evaluated often enough; its name, or nothing."""
    if max(len(_curve(Run(job.folder), "knn")) for job in jobs) <= 2:
        return []
    figure = f"{name}-curves.png"
    _draw_curves(jobs, out / figure)
    return [figure]


def _draw_curves(jobs: list[Job], path: Path) -> None:
    """Contrastive accuracy and kNN over the epochs: every seed thin, their mean thick."""
    panels: list[tuple[str, Measure]] = [("accuracy", "contrastive"), ("knn", "knn")]
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
