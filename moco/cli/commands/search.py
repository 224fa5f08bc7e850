"""moco search: the images of a data set that are nearest to given ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text
from torch import Tensor

from moco.cli.commands.common import TABLES, check_file, computing, print_on_main, progress, write_table
from moco.cli.commands.evaluated import data_of, open_encoder, open_images
from moco.cli.options import Search
from moco.data import Encoded, Files, ImageSet
from moco.data.formats.decode import read_image
from moco.data.sources.folder import find_images
from moco.evaluation import FeatureFile, Trained, encode, fingerprint, search_bank
from moco.evaluation.embedding import Row, rows_of
from moco.evaluation.feature_files import SEARCHED
from moco.evaluation.search import Hit, file_blocks, image_blocks
from moco.report import Cell, draw_rows, image_cell
from moco.report.sheets import SUFFIXES
from moco.runtime.device import Device
from moco.runtime.errors import UserError, require_all
from moco.runtime.ranks import is_main
from moco.training import start_logging

_DRAWN = 50
"""Queries on the sheet."""
_PRINTED = 20
"""Queries in the printed table."""


@dataclass(frozen=True)
class Found:
    """What is nearest to each query.

    Attributes:
        sets: the images that were searched, by split; of a file of features None, until they are drawn.
    """

    queries: list[Path]
    hits: list[list[Hit]]
    sets: Mapping[str, ImageSet] | None
    classes: list[str] | None
    spec: str
    trained: Trained

    def class_of(self, row: Row) -> str:
        return self.classes[row.label] if self.classes and row.label >= 0 else ""


def run(options: Search) -> None:
    """Finds the nearest images; prints them, and writes the table and the sheet."""
    check_file("--out", options.out, SUFFIXES, options.overwrite)
    check_file("--table", options.table, TABLES, options.overwrite)
    queries = _query_files(options.queries)
    with computing(options.compute) as device:
        start_logging(None, is_main())
        found = _search(options, queries, device)
        if not is_main():
            return
        print_on_main(_table(found))
        if options.table is not None:
            write_table(options.table, _rows(found))
            print_on_main(f"written to {options.table}")
        if options.out is not None:
            _draw(found, options)
            print_on_main(f"written to {options.out}")


def _query_files(paths: tuple[Path, ...]) -> list[Path]:
    """The files, and those in the folders. Raises UserError if one is not there or holds none."""
    require_all([(len(paths) > 0, "moco search RUN QUERY [QUERY ...]: the query is missing: an image, or a folder")])
    files: list[Path] = []
    for path in paths:
        require_all([(path.exists(), f"{path}: no such file or folder")])
        found = sorted(map(Path, find_images(path))) if path.is_dir() else [path]
        require_all([(len(found) > 0, f"{path}: no images here")])
        files += found
    return files


def _search(options: Search, queries: list[Path], device: Device) -> Found:
    trained = open_encoder(options)
    spec = data_of(options, options.among, "--among")
    encoder, centre = trained.on(device)
    workers = trained.config.compute.workers
    file = _feature_file(spec)
    if file is not None:
        file.require(fingerprint(encoder, centre), str(options.run))
    values = _query_features(trained, queries, device)
    k = options.k + 1  # a query that is among the images is not its own neighbour
    if file is not None:
        cosines, places = search_bank(values, file_blocks(file), len(file), k, options.index)
        rows, sets = file.rows(_valid(places)), None
        classes, spec = file.about.get("classes"), str(file.about["data"])
    else:
        source = open_images(spec, trained, options.download, options.max_bad)
        sets, classes = source.whole_splits, source.classes
        bank = image_blocks(encoder, sets, centre, device, workers, progress("searching"))
        cosines, places = search_bank(values, bank, sum(map(len, sets.values())), k, options.index)
        rows = rows_of(sets, _valid(places))
    hits = [
        [Hit(rows[place], cosine) for cosine, place in zip(*one, strict=True) if place >= 0]
        for one in zip(cosines.tolist(), places.tolist(), strict=True)
    ]
    others = [_without(query, own)[: options.k] for query, own in zip(queries, hits, strict=True)]
    return Found(queries, others, sets, classes, spec, trained)


def _valid(places: Tensor) -> list[int]:
    return [place for place in places.flatten().tolist() if place >= 0]


def _feature_file(spec: str) -> FeatureFile | None:
    """The file of features of that name, or None where it names a data set."""
    path = Path(spec)
    if path.suffix in SEARCHED and path.is_file():
        return FeatureFile.open(path)
    if path.suffix in (".csv", ".npy") and path.is_file():
        raise UserError(f"--among {spec}: is not searched: write the features as {' or '.join(SEARCHED)}")
    if path.suffix in SEARCHED and ":" not in spec:
        raise UserError(f"--among {spec}: no such file")
    return None


def _query_features(trained: Trained, queries: list[Path], device: Device) -> Tensor:
    """Features (m, d) on the device, on all ranks. Raises UserError if a query is no image."""
    encoder, centre = trained.on(device)
    values, places = encode(encoder, Encoded(Files(queries), max_bad=1), centre, device)
    if len(places) < len(queries):
        missing = next(i for i in range(len(queries)) if i not in set(places.tolist()))
        read_image(queries[missing])
        raise UserError(f"{queries[missing]}: cannot be read as an image")
    return values.to(device.device)


def _without(query: Path, hits: list[Hit]) -> list[Hit]:
    """The hits but the query itself, where it is a file of the data set."""
    own = query.resolve()
    return [hit for hit in hits if Path(hit.row.name).name != own.name or Path(hit.row.name).resolve() != own]


def _table(found: Found) -> Table:
    table = Table(title=Text(f"nearest in {found.spec}"), title_justify="left")
    columns = ["query", "cosine", "image"] + ["class"] * bool(found.classes)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name == "cosine" else "left")
    for query, hits in list(zip(found.queries, found.hits, strict=True))[:_PRINTED]:
        for i, hit in enumerate(hits):
            cells = [str(query) if i == 0 else "", f"{hit.cosine:.4f}", hit.row.title, found.class_of(hit.row)]
            table.add_row(*map(Text, cells[: len(columns)]))
    if len(found.queries) > _PRINTED:
        table.caption = f"the first {_PRINTED} of {len(found.queries):,} queries: --table writes all"
    return table


def _rows(found: Found) -> list[dict[str, object]]:
    return [
        {
            "query": str(query),
            "rank": rank,
            "cosine": round(hit.cosine, 6),
            **hit.row._asdict(),
            "class": found.class_of(hit.row),
        }
        for query, hits in zip(found.queries, found.hits, strict=True)
        for rank, hit in enumerate(hits, 1)
    ]


def _draw(found: Found, options: Search) -> None:
    assert options.out is not None
    sets = found.sets
    if sets is None:
        sets = open_images(found.spec, found.trained, options.download, options.max_bad).whole_splits
    rows = []
    for query, hits in list(zip(found.queries, found.hits, strict=True))[:_DRAWN]:
        first = Cell(lambda query=query: read_image(query), (query.name, "query"))  # type: ignore[misc]
        drawn = []
        for hit in hits:
            row = hit.row
            images = sets.get(row.split)
            if images is None or row.position >= len(images) or images.name(row.position) != row.name:
                raise UserError(f"--out {options.out}: {found.spec} no longer holds {row.name}: embed it again")
            drawn.append(image_cell(images, row.position, f"{hit.cosine:.3f}  {found.class_of(row)}"))
        rows.append([first, *drawn])
    draw_rows(rows, options.out)
