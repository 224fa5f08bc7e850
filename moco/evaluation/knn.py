"""The weighted k-nearest-neighbour classifier of InstDisc (Wu et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.collectives import average, world_size
from moco.data import Source
from moco.evaluation.features import Features, encode_share, evaluating, extract
from moco.evaluation.neighbours import Neighbours, nearest
from moco.runtime.device import Device
from moco.views import CentreCrop

_VOTERS = 4096
"""Queries whose votes are counted at once."""


def knn_predict(
    bank: Features, queries: Tensor, num_classes: int, k: int, temperature: float, device: torch.device
) -> Tensor:
    """The class that the k nearest bank features by cosine vote for, each with weight exp(cosine / temperature).

    Args:
        bank: labelled features, (n, d).
        queries: (m, d), of any length.
        k: neighbours; of a smaller bank all.

    Returns int64 (m,) on the CPU.
    """
    cosines, places = nearest(bank.values, queries.to(device), k)
    return vote(cosines, bank.labels[places], num_classes, temperature)


def vote(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The class with the most votes of neighbours, (m, k), the nearest first: int64 (m,)."""
    predicted = []
    for some, classes in zip(cosines.split(_VOTERS), labels.split(_VOTERS), strict=True):
        # Relative to the nearest, so that a small temperature does not overflow.
        weights = ((some - some[:, :1]) / temperature).exp()
        predicted.append(torch.zeros(len(some), num_classes).scatter_add_(1, classes, weights).argmax(dim=1))
    return torch.cat(predicted)


def half_unit(features: Tensor) -> Tensor:
    """Features (n, d) of length 1 in float16: normalised in float32 before, so that none is too large for it."""
    return F.normalize(features.float(), dim=1).half()


def evaluate_knn(
    encoder: nn.Module,
    source: Source,
    views: CentreCrop,
    device: Device,
    k: int = 200,
    temperature: float = 0.1,
    batch_size: int = 256,
    workers: int | None = 0,
) -> float:
    """kNN accuracy in 0..1 on the source's test images, with the labelled training images as the bank.

    Every rank holds the test images' features, in half precision, and encodes its share of the bank, which is streamed:
    its features are not kept. On ImageNet with ResNet-50 these are 50,000 x 2048 x 2 bytes = 205 MB of features,
    50,000 x 200 x 8 bytes = 80 MB of neighbours (four times that while ranks merge them), and some 200 MB of working
    memory: below 0.8 GB a rank, where the bank's features alone would be 1,281,167 x 2048 x 4 bytes = 10.5 GB.
    """
    bank = source.labelled_train
    assert bank.labels is not None
    test = extract(encoder, source.labelled_test, views, device, batch_size, workers, keep=half_unit)
    neighbours = Neighbours(test.values.to(device.device), min(k, len(bank)))
    with evaluating(encoder):
        for features, places in encode_share(encoder, bank, views, device, batch_size, workers):
            neighbours.add(features[(places >= 0).to(features.device)], places[places >= 0])
    cosines, places, share = neighbours.result_over_ranks()
    predicted = vote(cosines, bank.labels[places], source.num_classes, temperature)
    right = (predicted == test.labels[share]).sum().to(device.device, torch.float32)[None]
    average([right])
    return round(right.item() * world_size()) / len(test.labels)
