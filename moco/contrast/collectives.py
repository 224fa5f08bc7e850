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
    """The tensors (n, ...) of all ranks, in rank order: (world_size * n, ...), without gradient.

    Every rank gives the same shape.
    """
    if world_size() == 1:
        return tensor
    tensor = tensor.detach().contiguous()
    gathered = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(gathered, tensor)
    return gathered


def exchange(tensor: Tensor, order: Tensor) -> Tensor:
    """This rank's share of all ranks' tensors in a permuted order: what `gather(tensor)[local(order)]` gives.

    Only the rows that a rank needs are sent to it: n a rank in place of world_size * n.

    Args:
        tensor: (n, ...), of the same shape on every rank.
        order: int64 (world_size * n,), a permutation, the same on every rank; with several ranks on the CPU.

    Returns (n, ...), without gradient, in the memory format of `tensor`.
    """
    if world_size() == 1:
        return tensor[order]
    n, ranks = len(tensor), world_size()
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    rows = tensor.detach().permute(0, 2, 3, 1) if channels_last else tensor.detach()
    wanted = order.view(ranks, n)  # by rank, the rows that it needs, in its order
    from_here = wanted // n == rank()
    source = wanted[rank()] // n  # from which rank each row comes
    sent = (wanted[from_here] - rank() * n).to(rows.device)
    # As bytes: gloo does not know every dtype.
    outgoing = rows[sent].reshape(n, -1).view(torch.uint8)
    incoming = torch.empty_like(outgoing)
    counts = source.bincount(minlength=ranks).tolist(), from_here.sum(dim=1).tolist()
    dist.all_to_all_single(incoming, outgoing, *counts)
    places = source.argsort(stable=True).argsort().to(rows.device)
    received = incoming[places].view(rows.dtype).view_as(rows)
    return received.permute(0, 3, 1, 2) if channels_last else received


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        own = torch.empty_like(local(gradient), memory_format=torch.contiguous_format)
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`; the gradient of a rank's tensor is the sum of its gradients in all ranks' losses."""
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
    pieces = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)])
