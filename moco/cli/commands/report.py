"""moco report: a page about runs."""

import logging
from dataclasses import replace
from pathlib import Path

from moco.cli.commands.common import computing, print_on_main, progress
from moco.cli.options import Report
from moco.data import source_of
from moco.evaluation import open_trained
from moco.report import Gallery, GalleryMaker, write_page
from moco.report.transfer_page import write_transfer_page
from moco.runs.folder import Run
from moco.runtime.device import Device
from moco.runtime.errors import UserError, require_all
from moco.runtime.ranks import is_main
from moco.training import start_logging
from moco.transfer.run import task_of
from moco.views import Views

log = logging.getLogger("moco")


def run(options: Report) -> None:
    """Writes the page about some runs."""
    require_all([(len(options.runs) > 0, "moco report RUN [RUN ...]: the folder of a run is missing")])
    if len(options.runs) == 1 and task_of(options.runs[0]):
        folder = options.runs[0]
        write_transfer_page(folder, options.out or folder / "report.html")
        print_on_main(f"written to {options.out or folder / 'report.html'}: open it in a browser")
        return
    runs = [Run.open(path) for path in options.runs]
    for run in runs:
        run.config()
    out = options.out or (runs[0].path if len(runs) == 1 else Path()) / "report.html"
    rules = [
        (len(set(map(Path.resolve, options.runs))) == len(runs), "RUN: the same run is given twice"),
        (out.absolute().parent.is_dir(), f"--out {out}: no such folder: {out.parent}"),
        (not out.is_dir(), f"--out {out}: is a folder: give the page's file"),
        (out.suffix in (".html", ".htm"), f"--out {out}: a page is an .html"),
    ]
    require_all(rules)
    with computing(options.compute) as device:
        start_logging(None, is_main())
        galleries = [_gallery(run, options, device, max(1, options.points // len(runs))) for run in runs]
        if is_main():
            write_page(runs, galleries, out)
            print_on_main(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")


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
