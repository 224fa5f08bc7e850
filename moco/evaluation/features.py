"""Features of a set's images by a frozen encoder."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.contrast.ranks import gather, world_size
from moco.data import ImageSet, Loader, evaluation_plan
from moco.device import Device
from moco.views import CentreCrop


class Features(NamedTuple):
    values: Tensor
    """float32 (n, num_features) on the CPU, as the encoder gives them."""
    labels: Tensor
    """int64 (n,)."""


@torch.no_grad()
def extract(
    encoder: nn.Module, images: ImageSet, views: CentreCrop, device: Device, batch_size: int = 256, workers: int = 0
) -> Features:
    """Features of every image that can be read, in the order of the set, on every rank; ranks share the work.

    The encoder's training mode is put back after.
    """
    assert images.labels is not None
    training = encoder.training
    encoder.eval()
    n = len(images)
    rounded = -(-batch_size // world_size()) * world_size()
    asked = torch.cat([index for _, index in evaluation_plan(n, rounded)])
    values, found = [], []
    for index, (view,) in Loader(images, views, device.device, workers).batches(evaluation_plan(n, rounded)):
        with device.autocast():
            features = encoder(view)
        values.append(gather(features.float()).cpu())
        found.append(index)
    encoder.train(training)
    # An unreadable image's place was taken by another, whose features would be counted twice.
    own = (torch.cat(found) == asked).view(len(found), -1)
    readable = torch.cat([gather(row.to(device.device)).cpu() for row in own])[:n]
    return Features(torch.cat(values)[:n][readable], images.labels[readable])
