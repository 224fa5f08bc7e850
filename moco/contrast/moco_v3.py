"""MoCo v3 (Chen, Xie and He, 2021, arXiv 2104.02057): no queue, a predictor, a momentum that rises."""

import copy
import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from moco.contrast.batchnorm import synchronise_batch_norm
from moco.contrast.collectives import gather
from moco.contrast.end_to_end import contrast_in_batch
from moco.contrast.heads import count_features, mlp, normalised
from moco.contrast.loss import InfoNCE, mean_of
from moco.contrast.mechanism import Mechanism, check_momentum, check_temperature
from moco.contrast.momentum import momentum_update


class MoCoV3(Mechanism):
    """Algorithm 1 of MoCo v3: the dictionary is the mini-batch of all ranks, and its keys come from a momentum encoder.

    `query` (backbone and projector) and `predictor` are trained. BN statistics, the encoder's too, are computed over
    the images of all ranks, and so nothing is shuffled.

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
        ValueError: a number out of range, an encoder whose number of features is unknown, or BN that cannot be
            synchronised.
    """

    symmetric = True
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
        check_momentum(momentum)
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

        In evaluation mode the key encoder and the count of steps stay as they are.
        """
        pairs = self._pairs(view1, view2)
        q = [normalised(self.predictor(self.query(x_q))) for x_q, _ in pairs]  # queries: NxC
        if self.training:
            momentum_update(self.key, self.query, self.current_momentum())
            self.steps += 1
        with torch.no_grad():
            k = [gather(normalised(self.key(x_k))) for _, x_k in pairs]  # keys of all ranks
        both = mean_of([contrast_in_batch(q_i, k_i, self.temperature) for q_i, k_i in zip(q, k, strict=True)])
        return both._replace(loss=4 * self.temperature * both.loss)  # the sum of two, each times 2 tau

    def current_momentum(self) -> float | Tensor:
        """m of the step to come, 1 - (1 - momentum) (1 + cos(pi steps / total_steps)) / 2.

        A scalar tensor where the weights lie, so that a GPU neither waits for the CPU nor forgets its position, and
        float64, if the device has it.
        """
        if self.total_steps is None:
            return self.momentum
        steps = self.steps.to(torch.float32 if self.steps.is_mps else torch.float64)  # MPS has no float64
        progress = (steps / self.total_steps).clamp(max=1)
        return 1 - (1 - self.momentum) * (1 + torch.cos(math.pi * progress)) / 2

    def chance_loss(self, batch_size: int) -> float:
        return 4 * self.temperature * math.log(batch_size)
