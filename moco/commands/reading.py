"""moco doctor and moco report: what a run has left, to read and to look at."""

import logging
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from moco.cli import Report
from moco.commands.common import computing, console, progress, say
from moco.config import require_all
from moco.contrast.ranks import rank
from moco.data import source_of
from moco.device import Device
from moco.errors import UserError
from moco.evaluation import open_trained
from moco.report import SEVERITIES, Gallery, GalleryMaker, write_page
from moco.run import Run
from moco.training import diagnose, start_logging, write_findings
from moco.views import Views

log = logging.getLogger("moco")

COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan", "good": "green"}


def report(options: Report) -> None:
    """Writes the page about some runs."""
    require_all([(len(options.runs) > 0, "moco report RUN [RUN ...]: the folder of a run is missing")])
    runs = [Run.open(path) for path in options.runs]
    for run in runs:
        run.config()
    out = options.out or (runs[0].path if len(runs) == 1 else Path()) / "report.html"
    rules = [
        (len(set(map(Path.resolve, options.runs))) == len(runs), "RUN: the same run is given twice"),
        (1 <= options.points <= 10_000, f"--points {options.points}: in 1..10000"),
        (out.absolute().parent.is_dir(), f"--out {out}: no such folder: {out.parent}"),
        (not out.is_dir(), f"--out {out}: is a folder: give the page's file"),
        (out.suffix in (".html", ".htm"), f"--out {out}: a page is an .html"),
    ]
    require_all(rules)
    with computing(options.compute) as device:
        start_logging(None, rank() == 0)
        galleries = [_gallery(run, options, device, max(1, options.points // len(runs))) for run in runs]
        if rank() == 0:
            write_page(runs, galleries, out)
            say(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")


def doctor(folder: Path) -> None:
    """Says what a run's records show, in plain words; leaves with 1 if something is wrong."""
    run = Run.open(folder)
    findings = diagnose(run)
    if not findings:
        raise UserError(f"{folder}: nothing is recorded yet: wait for the first steps in metrics.jsonl")
    for finding in findings:
        sign, colour = SEVERITIES[finding.severity], COLOURS[finding.severity]
        console.print(f"[{colour}]{sign} {finding.name}[/]: {escape(finding.text)}")
        console.print(f"    seen in   {finding.evidence}\n    to do     {finding.advice}", markup=False)
        console.print(f"    rule from {finding.source}\n", markup=False, style="dim")
    try:
        write_findings(run, findings)
    except UserError as error:  # somebody else's run
        console.print(f"not kept: {error}", markup=False, style="dim")
    if any(finding.severity == "problem" for finding in findings):
        raise SystemExit(1)


def _gallery(run: Run, options: Report, device: Device, points: int) -> Gallery | str:
    """The pictures of a run; or why there are none, as its images may be elsewhere by now."""
    bar = lambda what: progress(f"{run.path.name}: {what}")  # noqa: E731
    try:
        trained = open_trained(run.path)
        data = replace(trained.config.data, source=options.data or trained.config.data.source)
        config = trained.config = replace(trained.config, data=data, compute=options.compute)
        source = source_of(config)
        encoder, centre = trained.on(device)
        views = Views(config.views.views, config.views.image_size, config.training.seed, device.channels_last)
        workers = config.compute.workers
        return GalleryMaker(encoder, source, centre, views, device, points, workers, bar).make()
    except UserError as error:
        if options.data is not None:
            raise
        log.warning("%s: the page has no pictures of it: %s", run.path, error)
        return str(error)
