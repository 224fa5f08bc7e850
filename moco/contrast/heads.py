"""Encoder and projection head: images in, the vectors that are contrasted out."""

from collections import OrderedDict
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.batchnorm import group_batch_norm, synchronise_batch_norm
from moco.contrast.loss import full_precision

Head = Literal["linear", "mlp"]


def with_head(
    encoder: nn.Module,
    dim: int,
    head: Head,
    hidden: int | None,
    bn_group: int | None,
    num_features: int | None,
) -> nn.Sequential:
    """The encoder as `backbone` and a projection head as `head`, with BN groups; arguments as of `MoCo`."""
    if dim < 1:
        raise ValueError(f"dim is at least 1, not {dim}")
    if bn_group is not None and bn_group < 2:
        raise ValueError(f"a BN group has at least 2 samples, not {bn_group}")
    features = count_features(encoder) if num_features is None else num_features
    whole = nn.Sequential(OrderedDict(backbone=encoder, head=projection_head(head, features, dim, hidden)))
    group_batch_norm(whole, bn_group)
    return whole


def projection_head(kind: Head, num_features: int, dim: int, hidden: int | None) -> nn.Module:
    """Features (n, num_features) to (n, dim): the fully connected layer of v1, or the 2-layer MLP of v2."""
    if kind == "linear":
        return nn.Linear(num_features, dim)
    if kind == "mlp":
        hidden = hidden or num_features
        return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
    raise ValueError(f'a head is "linear" or "mlp", not "{kind}"')


def mlp(widths: list[int], last_bn: bool = True) -> nn.Sequential:
    """MoCo v3's projector or predictor: linear layers of these widths, synchronised BN after each, ReLU between.

    (n, first) to (n, last). The last layer's BN, if it has one, has no affine parameters.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    if last_bn:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    whole = nn.Sequential(*layers)
    synchronise_batch_norm(whole)
    return whole


def count_features(encoder: nn.Module) -> int:
    """The encoder's attribute `num_features` (timm's convention), or the width of its last layer."""
    if isinstance(declared := getattr(encoder, "num_features", None), int):
        return declared
    for layer in reversed(list(encoder.modules())):
        for width in ("out_features", "num_features", "out_channels"):
            if isinstance(found := getattr(layer, width, None), int):
                return found
    raise ValueError("the encoder does not name its number of features: pass num_features")


def normalised(outputs: Tensor) -> Tensor:
    """L2-normalised rows of (n, dim), in float32 (of float64 in float64)."""
    return F.normalize(full_precision(outputs), dim=1)
