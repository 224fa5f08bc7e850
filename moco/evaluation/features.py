"""Features of a set's images by a frozen encoder."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.contrast.collectives import gather, world_size
from moco.data import Asked, ImageSet, Loader, evaluation_plan
from moco.runtime.device import Device
from moco.views import CentreCrop


class Features(NamedTuple):
    values: Tensor
    """float32 (n, num_features) on the CPU, as the encoder gives them."""
    labels: Tensor
    """int64 (n,)."""


@torch.no_grad()
def encode(
    encoder: nn.Module,
    images: ImageSet,
    views: CentreCrop,
    device: Device,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[list[Asked]], Iterable[Asked]] = iter,
) -> tuple[Tensor, Tensor]:
    """Features of every image that can be read, in the order of the set, on every rank; ranks share the work.

    The encoder's training mode is put back after. `progress` wraps the iteration over the batches.

    Returns float32 (n, num_features) and the places of the images in the set, int64 (n,), both on the CPU.
    """
    training = encoder.training
    encoder.eval()
    n = len(images)
    rounded = -(-batch_size // world_size()) * world_size()
    plan = list(evaluation_plan(n, rounded))
    values, found = [], []
    for index, (view,) in Loader(images, views, device.device, workers).batches(progress(plan)):
        with device.autocast():
            features = encoder(view)
        values.append(gather(features.float()).cpu())
        found.append(index)
    encoder.train(training)
    # An unreadable image's place was taken by another, whose features would be counted twice.
    own = (torch.cat(found) == torch.cat([index for _, index in plan])).view(len(found), -1)
    readable = torch.cat([gather(row.to(device.device)).cpu() for row in own])[:n]
    return torch.cat(values)[:n][readable], readable.nonzero().flatten()


def extract(
    encoder: nn.Module, images: ImageSet, views: CentreCrop, device: Device, batch_size: int = 256, workers: int = 0
) -> Features:
    """Features and labels of every image of a labelled set that can be read, as `encode` gives them."""
    assert images.labels is not None
    values, places = encode(encoder, images, views, device, batch_size, workers)
    return Features(values, images.labels[places])
