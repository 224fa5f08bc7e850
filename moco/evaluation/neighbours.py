"""Nearest neighbours by cosine: the one search of the package, exact, over a bank that need not fit into memory."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from moco.contrast.collectives import rank, world_size

_BLOCK, _PAIRS = 4096, 2**22
"""Rows of the bank that are compared at once, and pairs of a query and a row: some 100 MB of working memory."""
_NONE = torch.iinfo(torch.int64).min
"""The key where there is no neighbour yet: below any other."""


class Neighbours:
    """The k rows of a bank most similar to each query by cosine; the bank is streamed, block by block.

    What is kept of a neighbour is one int64 key, its cosine in the upper half and its place in the bank in the lower,
    so that the greatest keys are the nearest rows, of equal cosines those that come first in the bank. No two keys are
    equal, so neither the size of the blocks nor their order matters.

    Args:
        queries: (m, d) of any floating-point type and length, on the device that compares; kept as they are, and
            normalised in float32 whenever they are used.
        k: neighbours of each.
        own: int64 (m,), a place in the bank that is the query itself and does not count as its neighbour.
    """

    def __init__(self, queries: Tensor, k: int, own: Tensor | None = None) -> None:
        self.queries, self.k = queries, k
        self.own = None if own is None else own.to(queries.device)
        self.keys = torch.full((len(queries), k), _NONE, device=queries.device)
        self.pending: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: Tensor, places: Tensor) -> None:
        """Compares rows of the bank, (n, d) of any floating-point type; `places` are theirs in it, int64 (n,)."""
        device = self.queries.device
        for block, index in zip(rows.split(_BLOCK), places.split(_BLOCK), strict=True):
            self.pending.append((block.to(device), index.to(device)))
            # Small batches are collected: a comparison costs the less per row the more rows it is of.
            if sum(len(index) for _, index in self.pending) >= _BLOCK:
                self._compare()

    def result(self) -> tuple[Tensor, Tensor]:
        """Cosines, float32, and places in the bank, int64, both (m, k') on the CPU, the nearest first.

        k' is k, or less where the bank holds no more.
        """
        self._compare()
        return _cosines_and_places(self.keys)

    def result_over_ranks(self) -> tuple[Tensor, Tensor, slice]:
        """As `result`, over what all ranks compared, for this rank's share of the queries; and which share that is.

        All ranks hold the same queries and call it together; each gets the keys of its share from all others.
        """
        self._compare()
        ranks, (m, k) = world_size(), self.keys.shape
        share = -(-m // ranks)
        own = slice(min(rank() * share, m), min((rank() + 1) * share, m))
        if ranks == 1:
            return *_cosines_and_places(self.keys), own
        sent = F.pad(self.keys, (0, 0, 0, ranks * share - m), value=_NONE)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        keys = received.view(ranks, share, k).transpose(0, 1).flatten(1).topk(k).values
        return *_cosines_and_places(keys[: own.stop - own.start]), own

    def _compare(self) -> None:
        if not self.pending:
            return
        rows, places = (torch.cat(column) for column in zip(*self.pending, strict=True))
        self.pending.clear()
        rows = F.normalize(rows.float(), dim=1)
        step = max(1, _PAIRS // len(rows)) if len(rows) else 1
        for start in range(0, len(self.queries), step):
            some = slice(start, start + step)
            cosines = F.normalize(self.queries[some].float(), dim=1) @ rows.T
            self.keys[some] = self._merged(self.keys[some], cosines, places, some)

    def _merged(self, kept: Tensor, cosines: Tensor, places: Tensor, some: slice) -> Tensor:
        """The k greatest keys (m, k) of those kept (m, k) and of cosines (m, n) with rows at these places, int64 (n,).

        Keys are made of few columns alone: these are divided into groups, and of each row's k groups of the greatest
        maxima no other column can be among its k nearest. Where a maximum equals that of a group left out, all count.
        """
        k = self.k + (self.own is not None)
        size = 2 ** round(math.log2(max(1.0, (len(places) / max(k, 1)) ** 0.5)))
        whole = len(places) - len(places) % size
        if size == 1 or whole // size <= k:
            return self._best(kept, cosines, places.expand_as(cosines), some)
        maxima = cosines[:, :whole].unflatten(1, (-1, size)).amax(dim=2)
        greatest = maxima.topk(k + 1)
        columns = greatest.indices[:, :k, None] * size + torch.arange(size, device=cosines.device)
        rest = torch.arange(whole, len(places), device=cosines.device).expand(len(cosines), -1)
        columns = torch.cat((columns.flatten(1), rest), dim=1)
        best = self._best(kept, cosines.gather(1, columns), places[columns], some)
        tied = (greatest.values[:, k - 1] == greatest.values[:, k]).nonzero().flatten()
        if len(tied):
            own = slice(None) if self.own is None else tied + some.start
            best[tied] = self._best(kept[tied], cosines[tied], places.expand(len(tied), -1), own)
        return best

    def _best(self, kept: Tensor, cosines: Tensor, places: Tensor, some: slice | Tensor) -> Tensor:
        """The same of all columns: `places` are those of each cosine, (m, n)."""
        keys = _keys(cosines, places)
        if self.own is not None:
            keys.masked_fill_(places == self.own[some, None], _NONE)
        return torch.cat((kept, keys), dim=1).topk(self.k).values


def nearest(bank: Tensor, queries: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k rows of a bank in memory, (n, d), most similar to each query (m, d): cosines and places as `result`.

    Searches on the queries' device; `own` as of `Neighbours`.
    """
    neighbours = Neighbours(queries, min(k, len(bank)), own)
    neighbours.add(bank, torch.arange(len(bank)))
    return neighbours.result()


def _keys(cosines: Tensor, places: Tensor) -> Tensor:
    """Keys (m, n), int64, in the order of the cosines (m, n), and against that of the places (m, n), below 2**32."""
    return (_ordered((cosines + 0.0).view(torch.int32)).long() << 32) + (2**32 - 1 - places)  # + 0.0: -0.0 is 0.0


def _cosines_and_places(keys: Tensor) -> tuple[Tensor, Tensor]:
    keys = keys[:, (keys != _NONE).all(dim=0)].cpu()
    return _ordered((keys >> 32).int()).view(torch.float32), 2**32 - 1 - (keys & (2**32 - 1))


def _ordered(bits: Tensor) -> Tensor:
    """The bits of float32 numbers as int32 numbers of the same order; and back, as it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
