"""The weighted k-nearest-neighbour classifier of InstDisc (Wu et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.data import Source
from moco.evaluation.features import Features, extract
from moco.runtime.device import Device
from moco.views import CentreCrop

_QUERIES, _BANK = 512, 65536
"""Queries and bank features compared at once: at most 128 MB of similarities, whatever the size of the data."""


def knn_predict(
    bank: Features, queries: Tensor, num_classes: int, k: int, temperature: float, device: torch.device
) -> Tensor:
    """The class that the k nearest bank features by cosine vote for, each with weight exp(cosine / temperature).

    Args:
        bank: labelled features, float32 (n, d).
        queries: float32 (m, d), of any length.
        k: neighbours; of a smaller bank all.

    Returns int64 (m,) on the CPU.
    """
    m, k = len(queries), min(k, len(bank.values))
    best = torch.full((m, k), -torch.inf)
    labels = torch.zeros(m, k, dtype=torch.int64)
    for part, part_labels in zip(bank.values.split(_BANK), bank.labels.split(_BANK), strict=True):
        part, part_labels = F.normalize(part.to(device), dim=1), part_labels.to(device)
        for start in range(0, m, _QUERIES):
            rows = slice(start, start + _QUERIES)
            found, position = (F.normalize(queries[rows].to(device), dim=1) @ part.T).topk(min(k, len(part)), dim=1)
            # The k best of those so far and of this part.
            merged = torch.cat((best[rows].to(device), found), dim=1)
            merged_labels = torch.cat((labels[rows].to(device), part_labels[position]), dim=1)
            kept, which = merged.topk(k, dim=1)
            best[rows], labels[rows] = kept.cpu(), merged_labels.gather(1, which).cpu()
    # Relative to the nearest, so that a small temperature does not overflow.
    weights = ((best - best[:, :1]) / temperature).exp()
    return torch.zeros(m, num_classes).scatter_add_(1, labels, weights).argmax(dim=1)


def evaluate_knn(
    encoder: nn.Module,
    source: Source,
    views: CentreCrop,
    device: Device,
    k: int = 200,
    temperature: float = 0.1,
    batch_size: int = 256,
    workers: int = 0,
) -> float:
    """kNN accuracy in 0..1 on the source's test images, with the labelled training images as the bank."""
    assert source.test is not None
    bank = extract(encoder, source.labelled_train, views, device, batch_size, workers)
    test = extract(encoder, source.test, views, device, batch_size, workers)
    predicted = knn_predict(bank, test.values, source.num_classes, k, temperature, device.device)
    return (predicted == test.labels).double().mean().item()
