"""The optimiser and the learning rate of section 4.2."""

import math
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

WARMUP_FACTOR = 0.001
"""The first step's learning rate, as a share of what warm-up leads to."""


def parameter_groups(detector: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """All parameters that are trained, in two groups: those of normalisation layers have no weight decay."""
    norms = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    undecayed = {id(p) for m in detector.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    trained = [p for p in detector.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in undecayed], "weight_decay": 0.0},
    ]


def build_sgd(detector: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 1e-4) -> SGD:
    """SGD with momentum over `parameter_groups`."""
    return SGD(parameter_groups(detector, weight_decay), lr=lr, momentum=momentum)


def learning_rate(step: int, base: float, milestones: Sequence[int], warmup: int, gamma: float = 0.1) -> float:
    """The learning rate of a step (0, 1, ...): linear warm-up from a thousandth, times gamma at each milestone."""
    reached = base * gamma ** sum(max(step, warmup) >= milestone for milestone in milestones)
    if step >= warmup:
        return reached
    start = WARMUP_FACTOR * base
    return start + (reached - start) * step / warmup


def cosine(step: int, base: float, steps: int, warmup: int = 0) -> float:
    """The learning rate of a step (0, 1, ... steps-1): warm-up as in `learning_rate`, then half a cosine down to 0."""
    if step < warmup:
        return base * (WARMUP_FACTOR + (1 - WARMUP_FACTOR) * step / warmup)
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
