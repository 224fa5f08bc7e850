"""Run by test_remote_ranks.py on each rank: opens shards, and writes the labels that it found to FOLDER/<rank>.pt."""

from pathlib import Path

import torch

from moco.data.sources.shards import open_shards
from moco.runtime.ranks import joined, rank


def main(words: list[str]) -> None:
    spec, folder = words
    with joined():
        opened, *_ = open_shards(spec)
        torch.save(opened.labels(), Path(folder) / f"{rank()}.pt")
