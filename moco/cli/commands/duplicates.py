"""moco duplicates: near duplicates within a data set, and between its test and its training images."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from moco.cli.commands.common import TABLES, check_file, computing, print_on_main, progress, write_table
from moco.cli.commands.evaluated import data_of, open_encoder, open_images
from moco.cli.options import Duplicates as Options
from moco.data import ImageSet
from moco.evaluation.duplicates import Duplicates, Pair, find_duplicates
from moco.evaluation.embedding import Row, rows_of
from moco.report import Cell, draw_rows, image_cell
from moco.report.sheets import SUFFIXES
from moco.runtime.files import write_whole
from moco.runtime.ranks import is_main
from moco.training import start_logging

_GROUPS, _ACROSS = 24, 8
"""Groups on the sheet, and images of one."""


def run(options: Options) -> None:
    """Finds near duplicates; prints how many, and writes the sheet, the list and the table."""
    check_file("--out", options.out, SUFFIXES, options.overwrite)
    check_file("--drop", options.drop, (".txt",), options.overwrite)
    check_file("--table", options.table, TABLES, options.overwrite)
    evaluated = options.evaluated
    with computing(evaluated.compute) as device:
        start_logging(None, is_main())
        trained = open_encoder(evaluated)
        spec = data_of(evaluated, evaluated.data)
        source = open_images(spec, trained, evaluated.download, options.max_bad)
        encoder, centre = trained.on(device)
        workers, chosen = trained.config.compute.workers, (options.threshold, options.correlation, options.index)
        found = find_duplicates(encoder, source.whole_splits, centre, device, *chosen, workers, progress)
        if is_main():
            print_on_main(_table(found, source.whole_splits, spec))
            _write(found, source.whole_splits, source.classes, options)


def _table(found: Duplicates, sets: Mapping[str, ImageSet], spec: str) -> Table:
    """How many there are, at the threshold and at higher ones."""
    table = Table(title=Text(f"near duplicates: {spec}, {found.count:,} images"), title_justify="left")
    columns = ["cosine at least", "candidates", f"pixels confirm (correlation {found.correlation:g})"]
    if "test" in sets:
        columns.append("test images with a duplicate in training")
    for name in columns:
        table.add_column(name, justify="right")
    for share in (0, 0.25, 0.5, 0.75):
        least = found.threshold + (1 - found.threshold) * share
        confirmed = [pair for pair in found.confirmed if pair.cosine >= least]
        cells = [f"{least:.4f}", f"{sum(pair.cosine >= least for pair in found.pairs):,}", f"{len(confirmed):,}"]
        if "test" in sets:
            leaked = found.leaked(confirmed)
            cells.append(f"{leaked:,} ({100 * leaked / len(sets['test']):.2f} %)")
        table.add_row(*cells)
    table.caption = (
        f"at {found.threshold:.4f}: {len(found.groups):,} groups of {sum(map(len, found.groups)):,} images; "
        f"without {len(found.dropped):,} of them each is there once"
    )
    table.caption_justify = "left"
    return table


def _write(found: Duplicates, sets: Mapping[str, ImageSet], classes: list[str] | None, options: Options) -> None:
    rows = rows_of(sets, [place for group in found.groups for place in group])
    nearest: dict[int, Pair] = {}
    for pair in sorted(found.confirmed, key=lambda pair: pair.cosine):
        nearest[pair.first] = nearest[pair.second] = pair
    if options.table is not None:
        write_table(options.table, _described(found, rows, nearest, classes))
        print_on_main(f"written to {options.table}: the groups")
    if options.drop is not None:
        text = "".join(f"{rows[place].title}\n" for place in found.dropped).encode(errors="surrogateescape")
        write_whole(options.drop, lambda file: file.write(text))
        print_on_main(f"written to {options.drop}: {len(found.dropped):,} images to leave out")
    if options.out is not None:
        sheet = []
        for group in found.groups[:_GROUPS]:
            # The last is a test image, if there is one.
            shown = group if len(group) <= _ACROSS else [*group[: _ACROSS - 1], group[-1]]
            sheet.append([_cell(sets, rows[place], nearest[place]) for place in shown])
        if sheet:
            draw_rows(sheet, options.out, _ACROSS)
            print_on_main(f"written to {options.out}: {len(sheet)} of {len(found.groups):,} groups, a row each")
        else:
            print_on_main(f"{options.out} is not written: there are no duplicates to draw")


def _cell(sets: Mapping[str, ImageSet], row: Row, pair: Pair) -> Cell:
    return image_cell(sets[row.split], row.position, f"{row.split}  {pair.cosine:.3f}  {pair.correlation:.2f}")


def _described(
    found: Duplicates, rows: dict[int, Row], nearest: dict[int, Pair], classes: list[str] | None
) -> list[dict[str, object]]:
    """A line for each image of a group: cosine and correlation are those of its nearest duplicate."""
    dropped = set(found.dropped)
    return [
        {
            "group": number,
            "drop": int(place in dropped),
            "cosine": round(nearest[place].cosine, 6),
            "correlation": round(nearest[place].correlation, 6),
            **rows[place]._asdict(),
            "class": classes[rows[place].label] if classes and rows[place].label >= 0 else "",
        }
        for number, group in enumerate(found.groups, 1)
        for place in group
    ]
