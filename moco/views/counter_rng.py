"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A random number here is a pure function of what it is for, not of what was drawn before it, so it depends on no batch
size, worker, rank or resumption (design rule 2), and a whole batch of them is a few large tensor operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """Philox4x32-10 of four 32-bit counter words, each an int64 tensor of one broadcastable shape (...).

    Returns int64 (..., 4), each in 0 .. 2**32 - 1. `seed` fills the 64-bit key.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # The product wraps modulo 2**64, which keeps all of its bits; the mask undoes the sign of the shift.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def uniform(seed: int, index: Tensor, draws: int, *, epoch: int | Tensor = 0, stream: int | Tensor = 0) -> Tensor:
    """`draws` uniform numbers for every index: float32 (n, draws) in [0, 1), on the device of `index`.

    Args:
        seed: the run's seed, any integer of up to 64 bits.
        index: int64 (n,), non-negative: what the numbers belong to (an image).
        draws: how many numbers each index gets.
        epoch: a number below 2**32, or int64 (n,).
        stream: what distinguishes several uses of one (seed, epoch, index) (the view), below 2**16, or int64 (n,).
    """
    blocks = torch.arange((draws + 3) // 4, device=index.device)
    column = index[:, None]
    word1 = torch.as_tensor(stream, device=index.device).reshape(-1, 1) * 65536 + blocks
    word2 = torch.as_tensor(epoch, device=index.device).reshape(-1, 1)
    bits = philox((column & _MASK, word1, word2, column >> 32), seed)
    # 24 bits are what a float32 in [0, 1) holds exactly.
    return ((bits >> 8).to(torch.float32) * 2.0**-24).flatten(1)[:, :draws]
