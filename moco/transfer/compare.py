"""Several starts, numbers of labels and seeds of one setting, as runs in a folder, and their means side by side."""

import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from moco.runs.published import TRANSFER
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole
from moco.runtime.ranks import on_main
from moco.transfer.classification.config import PROTOCOLS, ClassificationConfig
from moco.transfer.classification.sets import sources_kept
from moco.transfer.config import TransferConfig, as_before
from moco.transfer.results import spelled
from moco.transfer.run import RUNS
from moco.transfer.start import encoder_of

log = logging.getLogger("moco")
Train = Callable[[TransferConfig, Path], None]
"""Starts the run in a folder, or continues it, up to its results."""
Plan = Callable[[TransferConfig], TransferConfig]
"""Gives a run what follows from its start and its number of labels, such as its length."""


@dataclass(frozen=True)
class Entry:
    """The runs of one start and one number of labels.

    Attributes:
        init: what they start from.
        labels: as --labels names them.
        numbers: of each run, by metric, in percent.
    """

    init: str
    labels: str
    numbers: list[dict[str, float]]

    def mean(self, metric: str) -> float:
        """NaN where one run has none."""
        return float(np.mean([each[metric] for each in self.numbers]))

    def std(self, metric: str) -> float:
        """The standard deviation over runs, NaN of a single one."""
        values = [each[metric] for each in self.numbers]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def text(self, metric: str) -> str:
        """`41.2 ± 0.8`; a single run has no standard deviation."""
        return f"{self.mean(metric):.1f}" + (f" ± {self.std(metric):.1f}" if len(self.numbers) > 1 else "")


@dataclass(frozen=True)
class Comparison:
    """All entries, in the order that they were asked for, and the recipe, whose published figures stand below them."""

    entries: list[Entry]
    recipe: str = ""

    @property
    def metrics(self) -> list[str]:
        """Those that all runs have, in the order of the first."""
        runs = [numbers for entry in self.entries for numbers in entry.numbers]
        return [name for name in runs[0] if all(name in numbers for numbers in runs)]

    def table(self) -> list[list[str]]:
        """Rows of text, the header first, the published figures last."""
        header = ["start", "labels", "runs", *self.metrics]
        rows = [[e.init, e.labels, str(len(e.numbers)), *map(e.text, self.metrics)] for e in self.entries]
        published = TRANSFER.get(self.recipe, ())
        if not published:
            return [header, *rows]
        figures = [[p.start, "", "", *(spelled(p.numbers.get(m)) for m in self.metrics), p.source] for p in published]
        return [[*header, "published in"], *([*row, ""] for row in rows), *figures]

    def markdown(self) -> str:
        header, *rows = self.table()
        return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])

    def write(self, folder: Path) -> None:
        """comparison.json, comparison.md and comparison.png."""
        values = [vars(entry) for entry in self.entries]
        write_whole(folder / "comparison.json", lambda file: file.write((json.dumps(values, indent=2) + "\n").encode()))
        write_whole(folder / "comparison.md", lambda file: file.write(self.markdown().encode()))
        draw(self, folder / "comparison.png")


def compare(
    config: TransferConfig,
    inits: Sequence[str],
    labels: Sequence[str],
    trials: int,
    out: Path,
    train: Train,
    plan: Plan = lambda config: config,
) -> Comparison:
    """Trains what has no results yet, seed by seed, so that an interrupted comparison has whole trials.

    The encoder of `random` is that of the first other start. A start may be followed by how a classifier is trained on
    it: `RUN,linear`, `RUN,knn`.
    """
    inits, labels = list(dict.fromkeys(inits)), list(dict.fromkeys(labels))
    given = on_main(lambda: {init: started(init, config) for init in inits})
    shared = next((own.encoder for own in given.values() if own.encoder.init != "random"), config.encoder)
    given = {
        init: replace(own, encoder=replace(shared, init="random")) if own.encoder.init == "random" else own
        for init, own in given.items()
    }
    cells = [(init, count) for count in labels for init in inits]
    numbers: dict[tuple[str, str], list[dict[str, float]]] = {cell: [] for cell in cells}
    with sources_kept():
        for trial in range(trials):
            for init, count in cells:
                seeded = replace(config.training, seed=config.training.seed + trial)
                own = plan(replace(given[init], training=seeded, data=replace(config.data, labels=count)))
                folder = out / f"{folder_name(init)}-labels-{folder_name(count)}-seed-{seeded.seed}"
                if on_main(partial(numbers_of, folder)) is None:
                    log.info("%s, labels %s, seed %d: %s", init, count, seeded.seed, folder)
                    train(own, folder)
                else:
                    on_main(partial(_require, own, folder))
                found = on_main(partial(numbers_of, folder))
                numbers[init, count].append(found or {})
    return Comparison([Entry(init, count, numbers[init, count]) for init, count in cells], config.recipe)


def start_of(entry: str) -> tuple[str, str | None]:
    """What an entry starts from, and how a classifier is trained on it, if it names that: `RUN,linear`."""
    start, comma, protocol = entry.rpartition(",")
    return (start, protocol) if comma and protocol in PROTOCOLS else (entry, None)


def started(entry: str, config: TransferConfig) -> TransferConfig:
    """The configuration of an entry of a comparison. Raises UserError if there are no such weights."""
    start, protocol = start_of(entry)
    config = replace(config, encoder=encoder_of(start, config.encoder))
    if protocol is None:
        return config
    if not isinstance(config, ClassificationConfig):
        raise UserError(f"{entry}: {protocol} is a protocol of moco finetune")
    return replace(config, model=replace(config.model, protocol=protocol))  # type: ignore[arg-type]


def _require(config: TransferConfig, folder: Path) -> None:
    """Raises UserError if the run in the folder is one of other options."""
    run = RUNS[config.task].open(folder)
    run.require(as_before(config, run.config()))


def numbers_of(folder: Path) -> dict[str, float] | None:
    """What a run measured, by metric, in percent; None if it has no results yet."""
    try:
        values = json.loads((folder / "results.json").read_text())
        numbers = values["numbers"].items()
        return {str(name): math.nan if value is None else float(value) for name, value in numbers}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def folder_name(text: str) -> str:
    """As part of a folder's name."""
    return re.sub(r"[^\w.]+", "-", text.replace("%", "pc")).strip("-.") or "all"


def draw(comparison: Comparison, path: Path) -> None:
    """A metric of each start, over the labels if there are several, else as bars: the mean of classes, where runs have
    it, as the classes may be of unequal size; else the first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = "mean of classes" if "mean of classes" in comparison.metrics else comparison.metrics[0]
    inits = list(dict.fromkeys(entry.init for entry in comparison.entries))
    labels = list(dict.fromkeys(entry.labels for entry in comparison.entries))
    figure, axis = plt.subplots(figsize=(6, 4))
    for init in inits:
        own = [entry for entry in comparison.entries if entry.init == init]
        means = [entry.mean(metric) for entry in own]
        errors = [entry.std(metric) if len(entry.numbers) > 1 else 0.0 for entry in own]
        if len(labels) > 1:
            axis.errorbar(range(len(own)), means, errors, label=Path(init).name, marker="o", capsize=3)
        else:
            axis.bar([Path(init).name], means, yerr=errors, capsize=3)
    if len(labels) > 1:
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlabel("labelled training images, as --labels")
        axis.legend(fontsize=8)
    axis.set_ylabel(f"{metric} (%)")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
