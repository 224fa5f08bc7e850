"""Files of features: .npz, .parquet, .csv and .npy, written block by block.

A row is an image: its features, `name`, `split`, `position` (in the split), `label` (-1: none), with a map also
`x` and `y`. In .npz these are arrays; beside a .npy, which holds the features alone, they are a .csv of the same rows.
"""

import csv
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from moco.evaluation.embedding import BLOCK, About, Embedding, Row
from moco.evaluation.feature_files import FORMAT, require_pyarrow
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole

SUFFIXES = (".npz", ".parquet", ".csv", ".npy")


@dataclass(frozen=True)
class Written:
    """What goes into a file.

    Attributes:
        about: of the encoder and the data; `.npz` and `.parquet` hold it, and search compares it.
        classes: the names of the labels, or None.
        normalise: whether features get length 1.
        places: float32 (rows, 2) on a map, or None.
    """

    embedding: Embedding
    about: About
    classes: list[str] | None = None
    normalise: bool = False
    places: Tensor | None = None

    def blocks(self) -> Iterator[Tensor]:
        for values in self.embedding.blocks():
            yield F.normalize(values, dim=1) if self.normalise else values

    def table(self) -> Iterator[tuple[Tensor, list[Row], list[list[float]]]]:
        """Block by block the features, the images, and their places on the map (of none, empty lists)."""
        rows, start = self.embedding.rows(), 0
        for values in self.blocks():
            some = list(islice(rows, len(values)))
            places = [[]] * len(some) if self.places is None else self.places[start : start + len(some)].tolist()
            yield values, some, places
            start += len(some)

    @property
    def map_columns(self) -> list[str]:
        return [] if self.places is None else ["x", "y"]

    def class_name(self, label: int) -> str:
        return self.classes[label] if self.classes and label >= 0 else ""

    def described(self) -> str:
        """`about`, as JSON."""
        own = {"num_features": self.embedding.num_features, "normalised": self.normalise, "classes": self.classes}
        return json.dumps({"format": FORMAT, "version": 1, **self.about, **own})


def check_output(path: Path, overwrite: bool) -> None:
    """Raises UserError unless features can be written to that file: its kind, its folder, what is there already."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: features are written as {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: no such folder: {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"--out {path}: its folder may not be written to")
    for file in written_files(path):
        if file.exists() and not overwrite:
            raise UserError(f"--out {file}: exists already: --overwrite replaces it")
    if path.suffix == ".parquet":
        require_pyarrow(path)


def written_files(path: Path) -> list[Path]:
    """The files that features are written to: one, or beside a .npy a .csv of what its rows are."""
    return [path, path.with_suffix(".csv")] if path.suffix == ".npy" else [path]


def write_features(path: Path, written: Written) -> None:
    """Writes the files whole or not at all. Raises UserError."""
    if path.suffix == ".npz":
        write_whole(path, lambda file: _write_npz(file, written))
    elif path.suffix == ".parquet":
        write_whole(path, lambda file: _write_parquet(file, written))
    elif path.suffix == ".csv":
        write_whole(path, lambda file: _write_csv(file, written, features=True))
    else:
        write_whole(path.with_suffix(".csv"), lambda file: _write_csv(file, written, features=False))
        write_whole(path, lambda file: _write_features_npy(file, written))


def _write_features_npy(file: IO[bytes], written: Written) -> None:
    shape = (len(written.embedding), written.embedding.num_features)
    _write_npy(file, np.dtype("<f4"), shape, (values.numpy() for values in written.blocks()))


def _write_npy(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).tobytes())


def _write_npz(file: IO[bytes], written: Written) -> None:
    n, rows = len(written.embedding), written.embedding.rows

    def column(values: Callable[[Row], Any]) -> Iterator[np.ndarray]:
        found = map(values, rows())
        while some := list(islice(found, BLOCK)):
            yield np.array(some)

    def text(values: Callable[[Row], str]) -> np.dtype:
        return np.dtype(f"<U{max((len(values(row)) for row in rows()), default=1) or 1}")

    def strings(values: Iterable[str]) -> np.ndarray:
        return np.array(list(values), dtype=np.str_)

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

        def member(name: str, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
            info = zipfile.ZipInfo(f"{name}.npy")
            # Features hardly shrink; stored, they are read at the disk's speed.
            info.compress_type = zipfile.ZIP_STORED if name == "features" else zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as opened:
                _write_npy(opened, dtype, shape, blocks)

        shape = (n, written.embedding.num_features)
        member("features", np.dtype("<f4"), shape, (values.numpy() for values in written.blocks()))
        name, split = text(lambda row: row.name), text(lambda row: row.split)
        member("names", name, (n,), column(lambda row: row.name))
        member("splits", split, (n,), column(lambda row: row.split))
        member("positions", np.dtype("<i8"), (n,), column(lambda row: row.position))
        member("labels", np.dtype("<i8"), (n,), column(lambda row: row.label))
        if written.places is not None:
            member("map", np.dtype("<f4"), (n, 2), [written.places.numpy()])
        for key, values in (
            ("classes", strings(written.classes or [])),
            ("unreadable", strings(written.embedding.unreadable_names())),
            ("about", np.array(written.described())),
        ):
            member(key, values.dtype, values.shape, [values])


def _write_csv(file: IO[bytes], written: Written, features: bool) -> None:
    text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="", write_through=True)
    out = csv.writer(text)
    numbered = [f"f{i}" for i in range(written.embedding.num_features)] if features else []
    out.writerow(["name", "split", "position", "label", "class", *written.map_columns, *numbered])
    for values, rows, places in written.table():
        numbers = values.tolist() if features else [[]] * len(rows)
        for row, place, feature in zip(rows, places, numbers, strict=True):
            described = [row.name, row.split, row.position, row.label, written.class_name(row.label)]
            # Nine digits are a float32, exactly.
            out.writerow([*described, *(f"{number:.9g}" for number in (*place, *feature))])
    text.detach()


def _write_parquet(file: IO[bytes], written: Written) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "name": pa.string(),
        "split": pa.string(),
        "position": pa.int64(),
        "label": pa.int64(),
        "class": pa.string(),
        **{name: pa.float32() for name in written.map_columns},
        "features": pa.list_(pa.float32()),
    }
    schema = pa.schema(list(kinds.items()), metadata={"moco": written.described()})
    d = written.embedding.num_features
    with closing(pq.ParquetWriter(file, schema)) as out:
        for values, rows, places in written.table():
            columns = {
                "name": [row.name.encode(errors="replace").decode() for row in rows],
                "split": [row.split for row in rows],
                "position": [row.position for row in rows],
                "label": [row.label for row in rows],
                "class": [written.class_name(row.label) for row in rows],
                **{name: [place[i] for place in places] for i, name in enumerate(written.map_columns)},
            }
            arrays = [pa.array(columns[name], kinds[name]) for name in columns]
            ends = pa.array(np.arange(0, (len(rows) + 1) * d, d, dtype=np.int32))
            arrays.append(pa.ListArray.from_arrays(ends, pa.array(values.flatten().numpy())))
            out.write_table(pa.Table.from_arrays(arrays, schema=schema))
