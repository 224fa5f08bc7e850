"""The momentum update (Eq. 2)."""

import torch
from torch import nn


@torch.no_grad()
def momentum_update(key_encoder: nn.Module, query_encoder: nn.Module, momentum: float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q (Eq. 2), all parameters in one multi-tensor operation.

    Buffers are left alone: the key encoder's BN has running statistics of its own, of the keys that it saw.

    Args:
        key_encoder, query_encoder: modules with the same parameters in the same order.
        momentum: m in 0..1.
    """
    torch._foreach_lerp_(list(key_encoder.parameters()), list(query_encoder.parameters()), 1 - momentum)
