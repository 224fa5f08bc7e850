"""Run by test_ranks.py on each rank: writes each rank's deviations from what should be to FOLDER/<rank>.pt."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from moco.contrast import MoCo, MoCoV3, SyncBatchNorm, group_batch_norm
from moco.contrast.batchnorm import permutation
from moco.contrast.collectives import average, exchange, gather, gather_with_gradient, local, rank, world_size
from tests.contrast import agreement
from tests.contrast.agreement import Deviations, bn_encoder

N = 5
"""Rows on each rank."""
ON_RANKS = (
    "moco",
    "moco with an MLP head, symmetric",
    "moco in 2 chunks",
    "end-to-end, symmetric",
    "memory bank in 2 chunks",
    "moco v3",
)
"""The cases of agreement.py that are run on several ranks."""


@contextmanager
def bytes_moved() -> Iterator[dict[str, int]]:
    """Counts the bytes that this rank hands to the collectives of `collectives.py`, by name."""
    moved = {"all_to_all_single": 0, "all_gather_into_tensor": 0}

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(dist, name)

        def call(output: Tensor, input: Tensor, *args: Any) -> Any:
            moved[name] += input.numel() * input.element_size()
            return original(output, input, *args)

        return call

    with mock.patch.multiple(dist, **{name: counting(name) for name in moved}):
        yield moved


def exchanges() -> Deviations:
    """`exchange(tensor, order)` is `gather(tensor)[local(order)]`, for every dtype, shape and memory format."""
    wrong = {}
    total = N * world_size()
    shapes = {"scalars": (), "vectors": (7,), "images": (3, 4, 5), "videos": (2, 3, 4, 5)}
    for counter, (shape, size) in enumerate(shapes.items()):
        for dtype in (torch.uint8, torch.float32, torch.bfloat16, torch.float64, torch.int64):
            everything = (torch.arange(total * math.prod(size)) % 251).to(dtype).view(total, *size)
            own = local(everything)
            formats = {"contiguous": own, "transposed": transposed(own)}
            if shape == "images":
                formats["channels_last"] = own.contiguous(memory_format=torch.channels_last)
            for layout, tensor in formats.items():
                order = permutation(total, torch.tensor(counter))
                with bytes_moved() as moved:
                    received = exchange(tensor, order)
                is_same = received.dtype == dtype and torch.equal(received, everything[local(order)])
                if layout == "channels_last":
                    is_same &= received.is_contiguous(memory_format=torch.channels_last)
                wrong[f"{shape} of {dtype}, {layout}"] = float(not is_same)
                needed = own.numel() * own.element_size() if world_size() > 1 else 0
                wrong[f"bytes of {shape} of {dtype}"] = float(sum(moved.values()) - needed)
    return wrong


def transposed(tensor: Tensor) -> Tensor:
    """The same numbers, laid out in memory with the rows last."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def collectives() -> Deviations:
    everything = torch.randn(N * world_size(), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = local(everything).clone().requires_grad_()
    wrong = {"local": float(not torch.equal(own, everything[rank() * N : rank() * N + N]))}
    wrong["gather"] = float(not torch.equal(gather(own), everything))
    # Each rank weighs the rows otherwise; the gradient of a row is the sum of all ranks' weights.
    weights = [everything.roll(i + 1, 0).square() for i in range(world_size())]
    gathered = gather_with_gradient(own)
    wrong["gather_with_gradient"] = float(not torch.equal(gathered, everything))
    (gradient,) = torch.autograd.grad((gathered * weights[rank()]).sum(), own)
    wrong["its gradient"] = float((gradient - local(sum(weights))).abs().max())
    means = [torch.full((2, 2), rank(), dtype=torch.float64), torch.tensor(2.0 * rank(), dtype=torch.float64)]
    average(means)
    mean = (world_size() - 1) / 2
    wrong["average"] = float((means[0] - mean).abs().max() + (means[1] - 2 * mean).abs())
    average([])
    return wrong


def images_stay_where_they_are() -> Deviations:
    """Shuffling BN sends a rank its share of the images, and gathers nothing but keys."""
    moco = MoCo(bn_encoder(), dim=8, queue_size=20)
    with bytes_moved() as moved:
        moco.encode_keys(torch.randn(N, 3, 6, 6))
    needed = {"all_to_all_single": N * 3 * 6 * 6 * 4, "all_gather_into_tensor": N * 8 * 4}
    return {name: float(moved[name] - needed[name]) for name in needed}


def synchronised_bn() -> Deviations:
    """Without momentum the running statistics are the mean of all; other BN is refused."""
    layer = SyncBatchNorm(torch.nn.BatchNorm1d(3, momentum=None).double())
    plain = torch.nn.BatchNorm1d(3, momentum=None).double()
    for seed in range(3):
        everything = torch.randn(N * world_size(), 3, generator=torch.Generator().manual_seed(seed)).double()
        wrong = {"output": float((layer(local(everything)) - local(plain(everything))).abs().max())}
    wrong["mean"] = float((layer.running_mean - plain.running_mean).abs().max())
    wrong["variance"] = float((layer.running_var - plain.running_var).abs().max())
    try:
        MoCoV3(group_batch_norm(bn_encoder(), 4))
        wrong["refused"] = 1.0
    except ValueError as error:
        wrong["refused"] = float(not str(error).startswith("BN over ranks: the encoder holds a GroupBatchNorm"))
    return wrong


def main(words: list[str]) -> None:
    (folder,) = map(Path, words)
    dist.init_process_group("gloo")
    results = {case.__name__: case() for case in (exchanges, collectives, images_stay_where_they_are, synchronised_bn)}
    for name, case in agreement.CASES.items():
        if name in ON_RANKS:
            results[name] = case()
    torch.save(results, folder / f"{rank()}.pt")
    dist.barrier()  # none leaves while another still works
    dist.destroy_process_group()
