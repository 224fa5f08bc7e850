"""The table and the figure of `python -m bench.minutes`: accuracy over minutes."""

import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.side_by_side import Row, machine_in_words
from moco.runtime.files import write_whole


class Curve(NamedTuple):
    """kNN accuracy over minutes, mean and standard deviation over the seeds (of one: nan): (n,) each."""

    minutes: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def at(self, minutes: float) -> str:
        """In percent, or nothing after its end."""
        if minutes > self.minutes[-1]:
            return ""
        mean, std = (100 * np.interp(minutes, self.minutes, values) for values in (self.mean, self.std))
        return f"{mean:.1f}" if np.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def curve_of(runs: list[Row]) -> Curve:
    """Of the runs of one side, each interpolated between its points, until the first of them ends."""
    points = [np.array([(point["minutes"], point["knn"]) for point in run["points"]]).T for run in runs]
    start, end = max(minutes[0] for minutes, _ in points), min(minutes[-1] for minutes, _ in points)
    minutes = np.linspace(start, end, 4 * len(points[0][0]) + 1)
    values = np.stack([np.interp(minutes, *each) for each in points])
    # The last of each run is what it reached, a little later than the first of them ended.
    values[:, -1] = [knn[-1] for _, knn in points]
    minutes[-1] = np.mean([run_minutes[-1] for run_minutes, _ in points])
    return Curve(minutes, values.mean(axis=0), values.std(axis=0, ddof=1) if len(runs) > 1 else minutes * np.nan)


def reaches(curve: Curve, accuracy: float) -> float | None:
    """The minutes after which the mean has reached the accuracy; None if it does not."""
    above = np.flatnonzero(curve.mean >= accuracy)
    if not len(above):
        return None
    i = above[0]
    if i == 0:
        return float(curve.minutes[0])
    return float(np.interp(accuracy, curve.mean[i - 1 : i + 1], curve.minutes[i - 1 : i + 1]))


def curves_of(runs: list[Row]) -> dict[str, Curve]:
    """By the side's name."""
    names = dict.fromkeys(run["side"] for run in runs)
    return {name: curve_of([run for run in runs if run["side"] == name]) for name in names}


def compared(runs: list[Row]) -> list[str]:
    """A line for each peer: the part of its time in which ours reaches what the better of its batches ends with."""
    curves, kinds = curves_of(runs), {run["side"]: run["kind"] for run in runs}
    ours = {name: curve for name, curve in curves.items() if kinds[name] == "ours"}
    lines = []
    for kind in dict.fromkeys(kinds.values()):
        if kind == "ours" or not ours:
            continue
        name = max((name for name in curves if kinds[name] == kind), key=lambda name: curves[name].mean[-1])
        final, minutes = curves[name].mean[-1], curves[name].minutes[-1]
        what = f"{kind}'s final accuracy ({100 * final:.1f} %, {name}, {minutes:.2f} minutes)"
        taken = {mine: time for mine, curve in ours.items() if (time := reaches(curve, final)) is not None}
        if taken:
            mine = min(taken, key=taken.__getitem__)
            lines.append(
                f"Ours reaches {what} in {taken[mine] / minutes:.2f} of its minutes ({taken[mine]:.2f}, {mine})."
            )
        else:
            lines.append(f"Ours does not reach {what}.")
    return lines


def table(runs: list[Row], minutes: float) -> list[str]:
    """A line for each side, kNN in percent, with the standard deviation over the seeds."""
    quarters = [minutes * share for share in (0.25, 0.5, 0.75)]
    head = ["side", "seeds", "s before the first step", "of it compiling", "steps"]
    head += [*(f"{time:.3g} min" for time in quarters), "at its end", "minutes"]
    lines = [head, ["---"] * len(head)]
    for name, curve in curves_of(runs).items():
        own = [run for run in runs if run["side"] == name]
        compiling = np.mean([run["compile_seconds"] for run in own])
        start = np.mean([run["start_seconds"] for run in own]) + compiling
        steps = np.mean([run["steps"] for run in own])
        cells = [name, str(len(own)), f"{start:.1f}", f"{compiling:.1f}", f"{steps:,.0f}"]
        cells += [*(curve.at(time) for time in quarters), f"**{curve.at(curve.minutes[-1])}**"]
        lines.append([*cells, f"{curve.minutes[-1]:.2f}"])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def draw(runs: list[Row], path: Path) -> None:
    """A curve a side, mean over the seeds; the band is the standard deviation."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    for name, (minutes, mean, std) in curves_of(runs).items():
        (line,) = axis.plot(minutes, 100 * mean, label=name)
        axis.fill_between(minutes, 100 * (mean - std), 100 * (mean + std), color=line.get_color(), alpha=0.2, lw=0)
    axis.set(xlabel="minutes since the process was started", ylabel="kNN accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    write_whole(path, lambda file: figure.savefig(file, dpi=120, format="png"))
    plt.close(figure)


def write_page(result: Row, out: Path) -> str:
    """Writes OUT.json, OUT.md and OUT.png; returns the page."""
    out.parent.mkdir(parents=True, exist_ok=True)
    runs, setting = result["runs"], result["setting"]
    machine = (
        machine_in_words(result) if result["device"] == "CPU" else f"{result['device']}, {machine_in_words(result)}"
    )
    lines = [
        "# Minutes to accuracy",
        "",
        f"`{result['command']}`: {machine}, {result['threads']} threads, torch {result['torch']}, "
        f"lightly {result['lightly']}, {result['date']}; {result['images']}, `{setting['encoder']}`, "
        f"{setting['minutes']:g} minutes a side. kNN accuracy in % (k 200, temperature 0.1, backbone features), mean "
        "and standard deviation over the seeds, interpolated between two checkpoints.",
        "",
        *table(runs, setting["minutes"]),
        "",
        *(f"- {line}" for line in compared(runs)),
        "",
        f"![accuracy over minutes]({out.name}.png)",
    ]
    page = "\n".join(lines) + "\n"
    draw(runs, Path(f"{out}.png"))
    write_whole(Path(f"{out}.json"), lambda file: file.write((json.dumps(result, indent=1) + "\n").encode()))
    write_whole(Path(f"{out}.md"), lambda file: file.write(page.encode()))
    return page
