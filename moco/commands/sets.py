"""moco data and moco pack."""

import shlex
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from moco.cli import Look, Pack
from moco.commands.common import console, progress, say
from moco.config import require_all
from moco.data import ImageSet, Source, open_source, shuffled
from moco.data.sources import KINDS
from moco.data.survey import Survey, survey
from moco.errors import UserError
from moco.report import draw_contacts, survey_table
from moco.views import Views, get_pretext

CONTACTS = 24
"""Images on a contact sheet."""


def list_sources() -> None:
    """A table of what --data takes."""
    table = Table(title="sources", title_justify="left")
    for column in ("SOURCE", "what"):
        table.add_column(column, no_wrap=column == "SOURCE")
    for name, kind in KINDS.items():
        table.add_row(kind.spelling(name), escape(kind.about) + (" (--data.download)" if kind.fetched else ""))
    console.print(table)


def data(look: Look) -> None:
    """Tells what is in a data set, and draws a contact sheet of it."""
    get_pretext(look.views)
    out, size = look.out, look.image_size
    rules = [
        (look.sample >= 0, f"--sample {look.sample}: at least 0 (0: all images)"),
        (size is None or size >= 1, f"--image-size {size}: at least 1"),
        (out is None or out.suffix.lower() == ".png", f"--out {out}: a contact sheet is a .png"),
        (out is None or out.absolute().parent.is_dir(), f"--out {out}: no such folder: {out and out.parent}"),
    ]
    require_all(rules)
    # Nothing is refused for being broken, and all is looked at as it lies there.
    source = open_source(look.source, size=size or 32, download=look.download, max_bad=1, resident_mb=0)
    found = _survey("training images", source.train, look)
    if source.bank is not None:
        _survey("labelled training images", source.bank, look)
    if source.test is not None:
        _survey("test images", source.test, look, found)
    if out is not None:
        _draw_contacts(source, found, look, out)


def _survey(name: str, images: ImageSet, look: Look, trained_on: Survey | None = None) -> Survey:
    found = survey(images, look.sample, progress=progress(name))
    console.print(survey_table(f"{look.source}: {name}", found, trained_on))
    return found


def _draw_contacts(source: Source, found: Survey, look: Look, out: Path) -> None:
    if not len(found.readable):
        raise UserError(f"{look.source}: no image can be read, so there is no contact sheet")
    own = min(224, *max(found.sizes)) if len(found.sizes) == 1 else 224
    chosen = shuffled(torch.arange(min(CONTACTS, len(found.readable))), len(found.readable), 0, 0)
    views = Views(look.views, look.image_size or own, seed=0)
    draw_contacts(source.train, found.readable[chosen], views, out, source.classes)
    console.print(f"written to {out}: images, and two views of each ({look.views}, {views.size} pixels)", markup=False)


def pack(options: Pack) -> None:
    """Packs a data set into shards."""
    from moco.data.pack import pack as pack_source

    rules = [
        (options.size is None or options.size >= 1, f"--size {options.size}: at least 1"),
        (1 <= options.quality <= 100, f"--quality {options.quality}: in 1..100"),
        (options.images_per_shard >= 1, f"--images-per-shard {options.images_per_shard}: at least 1"),
        (options.workers >= 0, f"--workers {options.workers}: at least 0"),
    ]
    require_all(rules)
    # Encoded images are packed as they are encoded, not as pixels.
    source = open_source(options.source, download=options.download, max_bad=1, resident_mb=0)
    packed = pack_source(
        source,
        options.out,
        size=options.size,
        format=options.format,
        quality=options.quality,
        images_per_shard=options.images_per_shard,
        workers=options.workers,
    )
    console.print(str(packed), markup=False)
    say(f"train on them by:\n  moco pretrain RECIPE --data {shlex.quote(f'shards:{options.out}')}")
