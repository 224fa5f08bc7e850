"""moco data: what is in a data set."""

from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from moco.cli.commands.common import console, progress
from moco.cli.options import Survey as Options
from moco.data import ImageSet, Source, open_source, shuffled
from moco.data.sources.registry import KINDS
from moco.data.survey import Survey, survey
from moco.report import draw_contacts, survey_table
from moco.runtime.errors import UserError, require_all
from moco.transfer.detection.config import KINDS as DETECTION_KINDS
from moco.transfer.detection.dataset import open_detection
from moco.transfer.detection.pictures import draw_objects, draw_sheet
from moco.transfer.detection.survey import survey_detection
from moco.transfer.segmentation.config import KINDS as SEGMENTATION_KINDS
from moco.transfer.segmentation.pictures import draw_labels
from moco.transfer.segmentation.sets import open_segmentation
from moco.transfer.segmentation.survey import survey_segmentation
from moco.transfer.survey import AnnotationSurvey
from moco.views import Views, get_pretext

CONTACTS = 24
"""Images on a contact sheet."""
OBJECTS = {name: about for name, about in DETECTION_KINDS.items() if name != "shapes"}
"""Sets with annotated objects."""
PIXELS = {name: about for name, about in SEGMENTATION_KINDS.items() if name not in DETECTION_KINDS}
"""Sets with a class for every pixel; VOC's folders are examined for their objects."""


def list_sources() -> None:
    """A table of what --data takes."""
    table = Table(title="sources", title_justify="left")
    for column in ("SOURCE", "what"):
        table.add_column(column, no_wrap=column == "SOURCE")
    for name, kind in KINDS.items():
        table.add_row(kind.spelling(name), escape(kind.about) + (" (--data.download)" if kind.fetched else ""))
    for name, about in (OBJECTS | PIXELS).items():
        table.add_row(f"{name}:PATH", f"annotated images: {about}")
    console.print(table)


def run(options: Options) -> None:
    """Prints what is in a data set, and draws a contact sheet of it."""
    get_pretext(options.views)
    out, size = options.out, options.image_size
    rules = [
        (out is None or out.suffix.lower() == ".png", f"--out {out}: a contact sheet is a .png"),
        (out is None or out.absolute().parent.is_dir(), f"--out {out}: no such folder: {out and out.parent}"),
    ]
    require_all(rules)
    kind = options.source.partition(":")[0]
    if kind in OBJECTS or kind in PIXELS:
        (_run_objects if kind in OBJECTS else _run_pixels)(options)
        return
    # Broken images are counted here, not refused, and nothing is decoded into memory before.
    source = open_source(options.source, size=size or 32, download=options.download, max_bad=1, cache_mb=0)
    found = _survey("training images", source.train, options)
    if source.bank is not None:
        _survey("labelled training images", source.bank, options)
    if source.test is not None:
        _survey("test images", source.test, options, found)
    if out is not None:
        _draw_contacts(source, found, options, out)


def _survey(name: str, images: ImageSet, options: Options, trained_on: Survey | None = None) -> Survey:
    found = survey(images, options.sample, progress=progress(name))
    console.print(survey_table(f"{options.source}: {name}", found, trained_on))
    return found


def _draw_contacts(source: Source, found: Survey, options: Options, out: Path) -> None:
    if not len(found.readable):
        raise UserError(f"{options.source}: no image can be read, so there is no contact sheet")
    own = min(224, *max(found.sizes)) if len(found.sizes) == 1 else 224
    chosen = shuffled(torch.arange(min(CONTACTS, len(found.readable))), len(found.readable), 0, 0)
    views = Views(options.views, options.image_size or own, seed=0)
    draw_contacts(source.train, found.readable[chosen], views, out, source.classes)
    console.print(
        f"written to {out}: images, and two views of each ({options.views}, {views.size} pixels)", markup=False
    )


def _run_objects(options: Options) -> None:
    """The same of images with boxes: they are drawn on the sheet, with their masks and keypoints."""
    train, test = open_detection(options.source)
    found = survey_detection(train, options.sample, progress("training images"))
    _print_survey("training images", found, options)
    if test is not None:
        of_test = survey_detection(test, options.sample, progress("test images"))
        _print_survey("test images", of_test, options)
    if options.out is not None:
        chosen = [
            (Path(train.name(i)).name, draw_objects(train.image(i), train.target(i), train.classes))
            for i in _on_sheet(found, options)
        ]
        draw_sheet(chosen, options.out)
        console.print(f"written to {options.out}: images with what is annotated", markup=False)


def _run_pixels(options: Options) -> None:
    """The same of images with a class for every pixel, whose labels are drawn beside them."""
    train, validation = open_segmentation(options.source)
    found = survey_segmentation(train, options.sample, progress("training images"))
    _print_survey("training images", found, options)
    of_validation = survey_segmentation(validation, options.sample, progress("validation images"))
    _print_survey("validation images", of_validation, options)
    if options.out is not None:
        chosen = [(train.name(i), *train.read(i)) for i in _on_sheet(found, options)[: CONTACTS // 2]]
        draw_labels(chosen, train.classes, options.out)
        console.print(f"written to {options.out}: images, and their labels", markup=False)


def _on_sheet(found: AnnotationSurvey, options: Options) -> list[int]:
    if not found.examined:
        raise UserError(f"{options.source}: no image can be read, so there is no contact sheet")
    return found.examined[:CONTACTS]


def _print_survey(name: str, found: AnnotationSurvey, options: Options) -> None:
    title = Text(f"{options.source}: {name}")
    table = Table(title=title, title_justify="left", show_header=False, min_width=len(title))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row, text in found.rows():
        table.add_row(row, Text(text))
    console.print(table)
