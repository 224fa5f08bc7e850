"""Running a grid: what is missing, and nothing twice."""

import json
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moco.data import Source, source_of
from moco.evaluation import evaluate_linear, open_trained
from moco.reproduce.experiment import Cell
from moco.reproduce.findings import Results, by_cell
from moco.runs.config import Compute, Config, Linear, check
from moco.runs.folder import Busy, Run, read_lines
from moco.runs.options import with_options
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import on_main, rank, world_size
from moco.training import Diverged, pretrain

log = logging.getLogger("moco")


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    cell: Cell
    seed: int
    folder: Path
    variant: str = ""
    """What the whole grid differs in from another, "bn_group=4"."""

    @property
    def config(self) -> Config:
        return with_options(self.cell.config, seed=self.seed)

    @property
    def title(self) -> str:
        return f"{self.setting}, seed {self.seed}"

    @property
    def setting(self) -> str:
        """The cell and the variant, as a table shows them."""
        return ", ".join(filter(None, (self.cell.label, self.variant)))

    def result(self) -> dict[str, Any] | None:
        """What was measured, if it was. Raises UserError for a result of other options."""
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        Run.open(self.folder).require(self.config)
        try:
            values = json.loads(path.read_text())
        except ValueError:
            values = None
        if not isinstance(values, dict) or not {"series", "x", "seed"} <= set(values):
            raise UserError(f"{path}: cannot be read: remove it, and the run is evaluated again")
        if "lookup" in values:  # the name of 0.1.0
            values["contrastive"] = values.pop("lookup")
        return values


def plan(cells: list[Cell], seeds: int, out: Path, compute: Compute, variant: str = "") -> list[Job]:
    """All runs of an experiment, a whole grid of one seed before the next; a variant's in a folder of its name."""
    placed = [replace(cell, config=replace(cell.config, compute=compute)) for cell in cells]
    return [
        Job(cell, seed, out / variant / f"{cell.name}-seed{seed}", variant) for seed in range(seeds) for cell in placed
    ]


def results_of(jobs: list[Job]) -> Results:
    """The results that there are, of a grid's settings."""
    return by_cell([result for job in jobs if (result := job.result()) is not None])


def sources(jobs: list[Job]) -> Iterator[tuple[Job, Source | UserError]]:
    """Each run with its data, or why it cannot be had; what several runs in a row share is opened once."""
    opened, data = None, None
    for job in jobs:
        try:
            if opened is None or data != job.config.data:
                opened, data = source_of(job.config), job.config.data
            if not opened.labelled:
                raise UserError(f"--data {data.source}: has no labels to evaluate with")
            check(job.config, world_size(), len(opened.train))
            yield job, opened
        except UserError as error:
            yield job, error


def run_missing(jobs: list[Job], device: Device, linear: Linear, deadline: float | None) -> None:
    """Trains and evaluates what has no result yet. Raises Stopped at a signal or at the deadline.

    Runs whose data is missing, or which another process trains, are logged and skipped; if all are, it is a UserError.
    A run that diverges is a result, too.
    """
    todo = [job for job in jobs if not _agreed(job.result() is not None)]
    skipped: list[UserError] = []
    for number, (job, source) in enumerate(sources(todo), 1):
        try:
            if isinstance(source, UserError):
                raise source
            run, there = _run_of(job)
            with ExitStack() as held:
                on_main(lambda run=run: held.enter_context(run.locked()))  # type: ignore[misc]
                if not _agreed(job.result() is not None):  # another process may have been faster
                    log.info("run %d of %d: %s", len(jobs) - len(todo) + number, len(jobs), job.title)
                    _run(job, run, source, device, linear, there, deadline)
        except UserError as error:
            if isinstance(source, Source) and not isinstance(error, Busy):
                raise
            log.warning("skipped: %s: %s", job.title, error)
            skipped.append(error)
    if skipped and len(skipped) == len(jobs):
        raise skipped[0]


def _run_of(job: Job) -> tuple[Run, bool]:
    """The job's run, and whether it was there."""
    if not _agreed(job.folder.joinpath("config.yaml").exists()):
        try:
            on_main(lambda: Run.create(job.folder, job.config) and None)
            return Run(job.folder), False
        except UserError:
            if not _agreed(job.folder.joinpath("config.yaml").exists()):
                raise  # else another process was faster
    run = Run.open(job.folder)
    run.require(job.config)
    return run, True


def _agreed(seen: bool) -> bool:
    """What the main rank saw: each reads the disk at another time, while other processes write there."""
    return on_main(lambda: seen)


def _run(
    job: Job, run: Run, source: Source, device: Device, linear: Linear, resume: bool, deadline: float | None
) -> None:
    try:
        with _timed(run, device):
            pretrain(job.config, source, run, device, resume, deadline)
        measured = evaluate(run, source, device, linear)
    except Diverged as error:
        log.warning("%s: %s", job.title, error)
        measured = {"diverged": str(error), **_spent(run)}
    if rank() == 0:
        about = {"series": job.cell.series, "x": job.cell.x, "seed": job.seed}
        run.write_json("result", about | measured)


def evaluate(run: Run, source: Source, device: Device, linear: Linear) -> dict[str, Any]:
    """A trained run's accuracies in 0..1: kNN and contrastive as it recorded them, and linear."""
    lines = read_lines(run.metrics)
    contrastive = [line["accuracy"] for line in lines if "accuracy" in line]
    knn = [line["knn"] for line in lines if "knn" in line]
    if not (knn and contrastive):
        raise UserError(f"{run.metrics}: holds no kNN accuracy: remove {run.path}, and it is run again")
    measured: dict[str, Any] = {
        "untrained_knn": knn[0],
        "knn": knn[-1],
        # Over the second half: that of a single batch is noisy.
        "contrastive": statistics.fmean(contrastive[len(contrastive) // 2 :]),
    }
    trained = open_trained(run.path)
    encoder, centre = trained.on(device)
    workers = trained.config.compute.workers
    linear = replace(linear, batch_size=min(linear.batch_size, len(source.labelled_train)))
    measured["linear"] = evaluate_linear(encoder, source, centre, device, linear, workers).top1
    measured |= _spent(run)
    return measured


@contextmanager
def _timed(run: Run, device: Device) -> Iterator[None]:
    """Adds what passes to the run's spent.json, also when it is stopped."""
    before, start = _spent(run), time.monotonic()
    device.reset_peak()
    try:
        yield
    finally:
        if rank() == 0:
            memory = device.peak_mb() if device.is_gpu else 0.0
            spent = {"seconds": before["seconds"] + time.monotonic() - start}
            run.write_json("spent", spent | {"memory_mb": max(memory, before["memory_mb"])})


def _spent(run: Run) -> dict[str, float]:
    """Seconds in all the run's pieces, start (compilation) and evaluations included, and the most GPU memory in MB."""
    path = run.path / "spent.json"
    none = {"seconds": 0.0, "memory_mb": 0.0}
    try:
        return none | json.loads(path.read_text()) if path.is_file() else none
    except (ValueError, TypeError):
        log.warning("%s: cannot be read: the time before is not counted", path)
        return none
