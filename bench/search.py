"""The exact search by blocks beside faiss's inverted file: seconds, and what faiss misses.

    python -m bench.search [--rows 10000 100000] [--queries 100 10000] [--dim 128] [--out results.json]

The features are drawn around 1,000 centres, as those of an encoder lie in clusters.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.gpu import context_of
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
    parser.add_argument("--out", type=Path, help="JSON")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    settings = [(rows, queries) for rows in options.rows for queries in options.queries]
    # One after the other: faiss has threads of its own, and those of both would wait for each other.
    exact, faiss = (
        [timed(index, features(queries, options.dim, 2), features(rows, options.dim, 1)) for rows, queries in settings]
        for index in ("exact", "faiss")
    )
    names = ["images", "queries", "exact, s", "faiss: index, s", "search, s", f"recall@{K}", "faiss / exact"]
    table, results = Table(*names), []
    for (rows, queries), (added, searched, truth), (built, probed, found) in zip(settings, exact, faiss, strict=True):
        recall = (found[:, :, None] == truth[:, None]).any(dim=1).float().mean().item()
        values = [added + searched, built, probed, recall, (built + probed) / (added + searched)]
        table.add_row(f"{rows:,}", f"{queries:,}", *(f"{value:.2f}" for value in values))
        results.append(dict(zip(names, [rows, queries, *values], strict=True)))
    Console(width=120).print(table)
    if options.out:
        about = context_of(torch.device("cpu"), shlex.join(["python", "-m", "bench.search", *arguments]))
        options.out.write_text(json.dumps({**about, "dim": options.dim, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
