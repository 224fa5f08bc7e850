"""What the method needs of several ranks. One rank is not a special case: there these are the identity."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """The tensors (n, ...) of all ranks, in the order of the ranks: (world_size * n, ...), without gradient.

    Every rank gives the same shape.
    """
    if world_size() == 1:
        return tensor
    tensor = tensor.detach().contiguous()
    gathered = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(gathered, tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return local(gradient)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`; the gradient of a rank's tensor is the sum of what all ranks' losses ask of it."""
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a tensor (world_size * n, ...) that all ranks hold: (n, ...). The inverse of `gather`."""
    return tensor.chunk(world_size())[rank()]


@torch.no_grad()
def average(tensors: list[Tensor]) -> None:
    """Replaces floating-point tensors by their mean over the ranks, in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
