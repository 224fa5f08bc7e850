"""The exact search by blocks beside faiss's inverted file: seconds, and what faiss misses.

    python -m bench.search [--rows 10000 100000] [--queries 100 10000] [--dim 128]

The features are drawn around 1,000 centres, as those of an encoder lie in clusters.
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from moco.evaluation.approximate import neighbours_by

K = 8


def features(count: int, dim: int, seed: int) -> Tensor:
    """float32 (count, dim)."""
    centres = torch.randn(1000, dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    near = centres[torch.randint(1000, (count,), generator=generator)]
    return near + 0.7 * torch.randn(count, dim, generator=generator)


def timed(index: str, queries: Tensor, bank: Tensor) -> tuple[float, float, Tensor]:
    """Seconds to add the bank, seconds to search, and the places that are found."""
    search = neighbours_by(index, queries, K, len(bank))  # type: ignore[arg-type]
    start = time.perf_counter()
    for places in torch.arange(len(bank)).split(4096):
        search.add(bank[places], places)
    built = time.perf_counter()
    _, places = search.result()
    return built - start, time.perf_counter() - built, places


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args(arguments)
    names = ["images", "queries", "exact, s", "faiss: index, s", "search, s", f"recall@{K}", "faiss / exact"]
    table = Table(*names)
    for count in options.rows:
        bank = features(count, options.dim, 1)
        for number in options.queries:
            queries = features(number, options.dim, 2)
            added, searched, exact = timed("exact", queries, bank)
            built, probed, found = timed("faiss", queries, bank)
            recall = (found[:, :, None] == exact[:, None]).any(dim=1).float().mean().item()
            ratio = (built + probed) / (added + searched)
            seconds = [f"{value:.2f}" for value in (added + searched, built, probed)]
            table.add_row(f"{count:,}", f"{number:,}", *seconds, f"{recall:.3f}", f"{ratio:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
