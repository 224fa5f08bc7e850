"""Files of features that `moco embed` wrote and a search reads, .npz and .parquet, block by block."""

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from moco.evaluation.embedding import BLOCK, About, Row
from moco.runtime.errors import UserError, one_line

SEARCHED = (".npz", ".parquet")
"""What holds all that a search needs."""
FORMAT = "moco features"


def require_pyarrow(path: Path) -> None:
    """Raises UserError, naming the extra, where .parquet can be neither written nor read."""
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: needs a package that is not installed: pip install 'momentum-contrast[parquet]'")


@dataclass(frozen=True)
class FeatureFile:
    """A file of features that `moco embed` wrote, .npz or .parquet; it is read block by block.

    Attributes:
        about: of the encoder and the data.
        num_features: numbers of a feature.
    """

    path: Path
    about: About
    count: int
    num_features: int

    def __len__(self) -> int:
        return self.count

    @classmethod
    def open(cls, path: Path) -> "FeatureFile":
        """Raises UserError if it is none."""
        if path.suffix == ".parquet":
            require_pyarrow(path)
        with _as_user_error(path):
            return _open_parquet(path) if path.suffix == ".parquet" else _open_npz(path)

    def require(self, fingerprint: str, weights: str) -> None:
        """Raises UserError unless the features are of the encoder, and the size of images, of that fingerprint."""
        if self.about.get("fingerprint") != fingerprint:
            made = "{encoder} of {weights} at {image_size} pixels, {num_features} features".format(**self.about)
            raise UserError(
                f"{self.path}: was made by another encoder ({made}) than {weights}: embed the images with it"
            )

    def blocks(self) -> Iterator[Tensor]:
        """The features, float32 (b, num_features), block by block. Raises UserError if the file is damaged."""
        with _as_user_error(self.path):
            for block in _parquet_blocks(self) if self.path.suffix == ".parquet" else _npz_blocks(self):
                yield torch.from_numpy(block).view(-1, self.num_features)

    def rows(self, positions: Iterable[int]) -> dict[int, Row]:
        """What images some rows are of."""
        with _as_user_error(self.path):
            wanted = sorted(set(positions))
            columns = _parquet_rows(self, wanted) if self.path.suffix == ".parquet" else _npz_rows(self, wanted)
            return {position: Row(*values) for position, *values in zip(wanted, *columns, strict=True)}


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    except Exception as error:  # zipfile, zlib, numpy and pyarrow raise nearly anything at a damaged file
        raise UserError(f"{path}: is no file of features that moco embed wrote, or a damaged one") from error


def _checked(described: str) -> About:
    about = json.loads(described)
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != 1:
        raise ValueError("another file")
    if missing := {"fingerprint", "encoder", "weights", "image_size", "num_features", "data"} - set(about):
        raise ValueError(f"it lacks {missing}")
    return about


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """An array of an .npz, from its first byte on; its shape and its type."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran or dtype.hasobject:
            raise ValueError(name)
        yield file, shape, dtype


def _member_blocks(path: Path, name: str) -> Iterator[np.ndarray]:
    with _member(path, name) as (file, shape, dtype):
        row = dtype.itemsize * int(np.prod(shape[1:]))
        for start in range(0, shape[0], BLOCK):
            count = min(BLOCK, shape[0] - start)
            data = bytearray(file.read(count * row))
            if len(data) < count * row:
                raise EOFError
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _open_npz(path: Path) -> FeatureFile:
    with np.load(path, allow_pickle=False) as arrays:
        about = _checked(str(arrays["about"]))
    with _member(path, "features") as (_, (count, num_features), dtype):
        if dtype != np.float32:
            raise ValueError(dtype)
        return FeatureFile(path, about, count, num_features)


def _npz_blocks(file: FeatureFile) -> Iterator[np.ndarray]:
    return _member_blocks(file.path, "features")


def _npz_rows(file: FeatureFile, wanted: list[int]) -> list[list[Any]]:
    places, columns = np.array(wanted, dtype=np.int64), []
    for name in ("splits", "positions", "names", "labels"):
        found: list[Any] = []
        for number, block in enumerate(_member_blocks(file.path, name)):
            own = places[(places >= number * BLOCK) & (places < (number + 1) * BLOCK)] - number * BLOCK
            found += block[own].tolist()
        columns.append(found)
    return columns


def _open_parquet(path: Path) -> FeatureFile:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        about = _checked((file.schema_arrow.metadata or {})[b"moco"].decode())
        return FeatureFile(path, about, file.metadata.num_rows, int(about["num_features"]))


def _parquet_blocks(file: FeatureFile) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path) as opened:
        for batch in opened.iter_batches(BLOCK, columns=["features"]):
            yield np.array(batch.column(0).flatten(), dtype=np.float32)


def _parquet_rows(file: FeatureFile, wanted: list[int]) -> list[list[Any]]:
    import pyarrow.parquet as pq

    names = ["split", "position", "name", "label"]
    columns: list[list[Any]] = [[] for _ in names]
    places, start = np.array(wanted, dtype=np.int64), 0
    with pq.ParquetFile(file.path) as opened:
        for batch in opened.iter_batches(BLOCK, columns=names):
            own = places[(places >= start) & (places < start + len(batch))] - start
            if len(own):
                chosen = batch.take(own)
                for name, column in zip(names, columns, strict=True):
                    column += chosen.column(name).to_pylist()
            start += len(batch)
    return columns
