"""The momentum update (Eq. 2)."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def momentum_update(key_encoder: nn.Module, query_encoder: nn.Module, momentum: float | Tensor) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q (Eq. 2), all parameters in one multi-tensor operation.

    Buffers are left alone: the key encoder's BN has running statistics of its own, of the keys that it saw.

    Args:
        key_encoder, query_encoder: modules with the same parameters in the same order.
        momentum: m in 0..1; one that changes may be a scalar tensor where the parameters lie, so that a GPU need not
            wait for it.
    """
    keys: list[Tensor] = list(key_encoder.parameters())
    queries: list[Tensor] = list(query_encoder.parameters())
    if isinstance(momentum, Tensor):
        differences = list(torch._foreach_sub(queries, keys))
        torch._foreach_mul_(differences, (1 - momentum).to(keys[0].dtype))
        torch._foreach_add_(keys, differences)
    else:
        torch._foreach_lerp_(keys, queries, 1 - momentum)
