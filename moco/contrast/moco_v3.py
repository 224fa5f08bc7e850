"""MoCo v3 (Chen, Xie and He, 2021, arXiv 2104.02057): no queue, a predictor, a momentum that rises."""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.end_to_end import look_up_in_batch
from moco.contrast.loss import InfoNCE
from moco.contrast.mechanism import check_temperature, count_features, mean_of
from moco.contrast.momentum import momentum_update
from moco.contrast.ranks import gather
from moco.contrast.synchronise import synchronise_batch_norm


class MoCoV3(nn.Module):
    """Algorithm 1 of MoCo v3: the dictionary is the mini-batch of all ranks, and its keys come from a momentum encoder.

    `query` (backbone and projector) and `predictor` are to be trained. BN, the encoder's too, takes its statistics over
    the images of all ranks, and so nothing is shuffled. Averaging the gradients over ranks is left to the loop.

    Args:
        encoder, num_features: as of `MoCo`.
        dim: dimensions of queries and keys.
        momentum: m of the first step, in 0..1.
        temperature: tau, above 0.
        total_steps: m rises to 1 over so many steps, by half a cosine; None: it stays.
        hidden: width of the hidden layers of projector and predictor.
        projector_layers: 2 for a ResNet, 3 for a ViT.
        predictor_bn: BN after the predictor's last layer, as the released code has it for a ViT and not for a ResNet.

    Raises:
        ValueError: a number out of range, an encoder whose features cannot be told, or BN that cannot be synchronised.
    """

    steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 256,
        momentum: float = 0.99,
        temperature: float = 1.0,
        *,
        total_steps: int | None = None,
        hidden: int = 4096,
        projector_layers: int = 2,
        predictor_bn: bool = False,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is in 0..1, not {momentum}")
        for name, number in {"dim": dim, "hidden": hidden, "projector_layers": projector_layers}.items():
            if number < 1:
                raise ValueError(f"{name} is at least 1, not {number}")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps is at least 1, not {total_steps}")
        check_temperature(temperature)
        self.momentum, self.temperature, self.total_steps = momentum, temperature, total_steps
        features = count_features(encoder) if num_features is None else num_features
        projector = mlp([features, *[hidden] * (projector_layers - 1), dim])
        self.query = nn.Sequential(OrderedDict(backbone=synchronise_batch_norm(encoder), head=projector))
        self.predictor = mlp([dim, hidden, dim], last_bn=predictor_bn)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, view1: Tensor, view2: Tensor) -> InfoNCE:
        """The loss of one step, 2 tau (ctr(q1, k2) + ctr(q2, k1)); views (n, ...) as of `MoCo`.

        In evaluation the key encoder and the count of steps stay as they are. The momentum update comes first, between
        the optimiser's last step and these keys, where Algorithm 1 has it too.
        """
        (result,) = self.parts(view1, view2)
        return result

    def parts(self, view1: Tensor, view2: Tensor, count: int = 1) -> Iterator[InfoNCE]:
        """The same, for a loop that accumulates gradients. Raises ValueError at a `count` other than 1."""
        if count != 1:
            raise ValueError("moco-v3: the mini-batch is the dictionary, and cannot be taken in parts")
        if self.training:
            momentum_update(self.key, self.query, self.current_momentum())
        queries = [F.normalize(self.predictor(self.query(view)).float(), dim=1) for view in (view1, view2)]
        with torch.no_grad():
            keys = [gather(F.normalize(self.key(view).float(), dim=1)) for view in (view2, view1)]
        both = mean_of([look_up_in_batch(q, k, self.temperature) for q, k in zip(queries, keys, strict=True)])
        yield both._replace(loss=4 * self.temperature * both.loss)  # the sum of two, each times 2 tau
        if self.training:
            self.steps += 1

    def current_momentum(self) -> float | Tensor:
        """m of the step to come, 1 - (1 - momentum) (1 + cos(pi steps / total_steps)) / 2.

        A float64 scalar tensor where the weights lie, so that a GPU neither waits for the CPU nor forgets its position.
        """
        if self.total_steps is None:
            return self.momentum
        progress = (self.steps.double() / self.total_steps).clamp(max=1)
        return 1 - (1 - self.momentum) * (1 + torch.cos(math.pi * progress)) / 2


def mlp(widths: list[int], last_bn: bool = True) -> nn.Sequential:
    """Linear layers from width to width, with synchronised BN after each and ReLU between: (n, first) to (n, last).

    The last layer's BN, if it has one, learns no scale and shift: normalising the output would undo most of it.
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
