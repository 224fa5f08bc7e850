"""Features of a set's images by a frozen encoder."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.contrast.collectives import gather, local, world_size
from moco.data import ImageSet, Indices, Loader, evaluation_plan
from moco.runtime.device import Device
from moco.views import CentreCrop

Progress = Callable[[list[Indices]], Iterable[Indices]]
"""Wraps the iteration over the batches."""


class Features(NamedTuple):
    values: Tensor
    """(n, num_features) on the CPU: float32, as the encoder gives them, or what `keep` of `extract` makes of them."""
    labels: Tensor
    """int64 (n,)."""


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """The encoder in evaluation mode; its own mode is put back after."""
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


def multiple_of_ranks(batch_size: int) -> int:
    """The batch size, rounded up so that all ranks have shares of one size."""
    return -(-batch_size // world_size()) * world_size()


@torch.no_grad()
def encode_share(
    encoder: nn.Module,
    images: ImageSet,
    views: CentreCrop,
    device: Device,
    batch_size: int = 256,
    workers: int | None = 0,
    progress: Progress = iter,
    first: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of the features of a set, batch by batch; every rank gets as many batches of one size.

    Args:
        first: the batch to begin with, counted from 0.

    Yields float32 (b, num_features) on the device, and int64 (b,) on the CPU: the images' places in the set, in its
    order over the ranks; -1 where a row does not count, as it fills up the last batch or stands in for an unreadable
    image, and would be counted twice.
    """
    batch_size = multiple_of_ranks(batch_size)
    plan = list(evaluation_plan(len(images), batch_size))
    batches = Loader(images, views, device.device, workers).batches(progress(plan[first:]))
    starts = range(first * batch_size, len(plan) * batch_size, batch_size)
    for start, (index, (view,)) in zip(starts, batches, strict=True):
        with device.autocast():
            features = encoder(view)
        place = local(torch.arange(start, start + batch_size))
        yield features.float(), place.where(place == index, -1)


def encode_gathered(
    encoder: nn.Module,
    images: ImageSet,
    views: CentreCrop,
    device: Device,
    batch_size: int = 256,
    workers: int | None = 0,
    progress: Progress = iter,
    first: int = 0,
    keep: Callable[[Tensor], Tensor] = lambda features: features,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of a set batch by batch, on every rank; ranks share the work. Arguments as of `encode_share`, `encode`.

    Yields what is kept of the features (b, num_features), and the places of the images in the set, int64 (b,), both on
    the CPU and in the order of the set; images that cannot be read are left out.
    """
    with evaluating(encoder):
        for features, place in encode_share(encoder, images, views, device, batch_size, workers, progress, first):
            rows, place = gather(keep(features)).cpu(), gather(place.to(device.device)).cpu()
            yield rows[place >= 0], place[place >= 0]


def encode(
    encoder: nn.Module,
    images: ImageSet,
    views: CentreCrop,
    device: Device,
    batch_size: int = 256,
    workers: int | None = 0,
    progress: Progress = iter,
    keep: Callable[[Tensor], Tensor] = lambda features: features,
) -> tuple[Tensor, Tensor]:
    """Features of every image that can be read, in the order of the set, on every rank; ranks share the work.

    Args:
        keep: what is kept of a batch's float32 features (b, num_features), such as half of their precision.

    Returns (n, num_features) and the places of the images in the set, int64 (n,), both on the CPU.
    """
    values, places, n = torch.empty(0), torch.empty(len(images), dtype=torch.int64), 0
    batches = encode_gathered(encoder, images, views, device, batch_size, workers, progress, keep=keep)
    for rows, place in batches:
        if n == 0:  # in one piece from the start: pieces put together at the end would take twice the memory
            values = rows.new_empty(len(images), rows.shape[1])
        values[n : n + len(rows)], places[n : n + len(rows)] = rows, place
        n += len(rows)
    return values[:n], places[:n]


def extract(
    encoder: nn.Module,
    images: ImageSet,
    views: CentreCrop,
    device: Device,
    batch_size: int = 256,
    workers: int | None = 0,
    keep: Callable[[Tensor], Tensor] = lambda features: features,
) -> Features:
    """Features and labels of every image of a labelled set that can be read, as `encode` gives them."""
    assert images.labels is not None
    values, places = encode(encoder, images, views, device, batch_size, workers, keep=keep)
    return Features(values, images.labels[places])
