"""The images nearest to given ones: a bank is streamed past the queries, from a file of features or from images."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.data import ImageSet
from moco.evaluation.approximate import Index, neighbours_by
from moco.evaluation.embedding import Row
from moco.evaluation.feature_files import FeatureFile
from moco.evaluation.features import Progress, encode_share, evaluating
from moco.runtime.device import Device
from moco.runtime.ranks import gather_objects, rank, world_size
from moco.views import CentreCrop

Blocks = Iterator[tuple[Tensor, Tensor]]
"""Rows of a bank (b, d), and their places in it, int64 (b,)."""


class Hit(NamedTuple):
    """An image that was found."""

    row: Row
    cosine: float


def file_blocks(file: FeatureFile) -> Blocks:
    """This rank's share of a file's features."""
    start = 0
    for number, block in enumerate(file.blocks()):
        if number % world_size() == rank():
            yield block, torch.arange(start, start + len(block))
        start += len(block)


def image_blocks(
    encoder: nn.Module,
    sets: Mapping[str, ImageSet],
    views: CentreCrop,
    device: Device,
    workers: int | None = 0,
    progress: Progress = iter,
) -> Blocks:
    """This rank's share of the features of the images of some sets, as they are encoded; places are in all together."""
    offset = 0
    with evaluating(encoder):
        for images in sets.values():
            for features, places in encode_share(encoder, images, views, device, 256, workers, progress):
                yield features[(places >= 0).to(features.device)], offset + places[places >= 0]
            images.agree_on_unreadable()
            offset += len(images)


def search_bank(queries: Tensor, bank: Blocks, count: int, k: int, index: Index = "auto") -> tuple[Tensor, Tensor]:
    """The k rows of a bank most similar to each query (m, d) by cosine; called on all ranks, which share the bank.

    Args:
        queries: the same on all ranks, on the device that compares.
        bank: this rank's share.
        count: rows of the whole bank, at most.

    Returns cosines, float32, and places in the bank, int64, both (m, k') on the CPU, the nearest first; k' is k, or
    less where the bank holds no more.
    """
    neighbours = neighbours_by(index, queries, k, count)
    for rows, places in bank:
        neighbours.add(rows, places)
    cosines, places, _ = neighbours.result_over_ranks()
    # A rank without queries does not know how many columns the others have.
    shares = [share for share in gather_objects((cosines, places)) if len(share[0])] or [(cosines, places)]
    return torch.cat([share[0] for share in shares]), torch.cat([share[1] for share in shares])
