"""Nearest neighbours by faiss: approximate, for banks too large for the exact search."""

import math
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moco.contrast.collectives import world_size
from moco.evaluation.neighbours import Neighbours
from moco.runtime.errors import UserError

Index = Literal["auto", "exact", "faiss"]
EXACT_PAIRS = 10**12
"""Pairs of a query and a row that `auto` compares exactly: a million images with one another. 10,000 with a million
take 157 s on two cores (bench/notes.md)."""
PROBED = 16
"""Cells of the index that are searched for a query."""
_TRAINED_ON = 64
"""Rows for each cell that k-means is trained on: above the 39 that faiss asks for, and enough not to matter."""


class FaissNeighbours:
    """As `Neighbours`, by an inverted file of the rows (faiss's IVF-Flat): only the cells nearest to a query are
    compared with it, exactly. A row in another cell is missed: bench/search.py measures how many.

    Args:
        queries: (m, d), of any length.
        k: neighbours of each.
        count: how many rows are going to be added.
        own: int64 (m,), a place in the bank that does not count as the query's neighbour.
    """

    def __init__(self, queries: Tensor, k: int, count: int, own: Tensor | None = None) -> None:
        self.queries, self.k, self.own = queries, k, own
        self.cells = max(1, min(int(4 * math.sqrt(count)), count // 39))
        self.index: Any = None
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.enough = min(count, _TRAINED_ON * self.cells)

    def add(self, rows: Tensor, places: Tensor) -> None:
        """Puts rows of the bank, (n, d), into the index; `places` are theirs in it, int64 (n,)."""
        self.waiting.append((F.normalize(rows.float(), dim=1).cpu(), places.cpu()))
        if self.index is not None or sum(len(places) for _, places in self.waiting) >= self.enough:
            self._flush()

    def _flush(self) -> None:
        import faiss

        if not self.waiting:
            return
        rows, places = (torch.cat(column).numpy() for column in zip(*self.waiting, strict=True))
        self.waiting.clear()
        if self.index is None:
            d = rows.shape[1]
            self.index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, self.cells, faiss.METRIC_INNER_PRODUCT)
            self.index.cp.seed = 0
            self.index.train(rows)
            self.index.nprobe = min(PROBED, self.cells)
        self.index.add_with_ids(rows, places)

    def result(self) -> tuple[Tensor, Tensor]:
        """Cosines, float32, and places, int64, both (m, k) on the CPU, the nearest first.

        Where the cells that were searched hold fewer rows than k, the cosine is -inf and the place -1.
        """
        self._flush()
        more = self.k + (self.own is not None)
        queries = F.normalize(self.queries.float(), dim=1).cpu().numpy()
        cosines, places = map(torch.from_numpy, self.index.search(queries, more))
        if self.own is not None:
            is_own = places == self.own.cpu()[:, None]
            order = is_own.long().argsort(dim=1, stable=True)[:, : self.k]
            cosines, places = cosines.masked_fill(is_own, -math.inf).gather(1, order), places.gather(1, order)
        return cosines.where(places >= 0, torch.tensor(-math.inf)), places

    def result_over_ranks(self) -> tuple[Tensor, Tensor, slice]:
        """As `result`; and that it is of all queries."""
        return *self.result(), slice(0, len(self.queries))


def neighbours_by(
    index: Index, queries: Tensor, k: int, count: int, own: Tensor | None = None
) -> Neighbours | FaissNeighbours:
    """What finds the k nearest of `count` rows: exact by blocks, or by faiss.

    Args:
        index: exact; faiss; auto: exact up to `EXACT_PAIRS` pairs of a query and a row.
        queries, own: as of `Neighbours`.

    Raises UserError as `uses_faiss`.
    """
    if uses_faiss(index, len(queries), count):
        return FaissNeighbours(queries, min(k, count), count, own)
    return Neighbours(queries, min(k, count), own)


def uses_faiss(index: Index, queries: int, count: int, option: str = "", instead: str = "--index exact") -> bool:
    """Whether faiss compares so many queries with so many rows.

    Args:
        option, instead: for the error: the option that needs the search, and what does without faiss.

    Raises UserError where faiss is wanted and is not installed, or several ranks share the search.
    """
    if index == "exact" or (index == "auto" and queries * count <= EXACT_PAIRS):
        return False
    why = f"{option or f'--index {index}'}: {queries:,} queries among {count:,} images"
    if find_spec("faiss") is None:
        raise UserError(
            f"{why}: needs a package that is not installed: pip install 'momentum-contrast[faiss]', or {instead}"
        )
    if world_size() > 1:
        raise UserError(f"{why}: faiss searches in one process: without torchrun, or {instead}")
    return True
