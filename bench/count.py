"""What a training step costs on paper: its operations and bytes, counted as PyTorch runs them, without a device.

    python -m bench.count [--encoder resnet50] [--size 224] [--batch 256] [--queue 65536] [--bn-group 32]

Every operation of the step is counted on tensors that have shapes alone: products of the convolutions and matrices as
floating-point operations, two each; and of every operation the bytes that it reads and writes. Its floor on a machine
is the sum over the operations of the greater of operations / peak and bytes / bandwidth: what the step would take if
each kernel ran at one of the machine's two ceilings and nothing lay between them.
"""

import argparse
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from moco.contrast import MoCo
from moco.encoders import build_encoder

MATRIX = "products"
"""What runs at the peak of the matrix units; all else is bound by memory."""


@dataclass(frozen=True)
class Ceilings:
    """Of a machine, as measured: by a large bf16 product, and by a large copy (read and written bytes)."""

    flops: float
    """Floating-point operations a second."""
    bandwidth: float
    """Bytes a second."""


# By the vendor's datasheet: what a measurement is to be compared with.
DATASHEET = {"H100 SXM": Ceilings(989e12, 3.35e12), "H200": Ceilings(989e12, 4.8e12)}


@dataclass
class Count:
    """Operations and bytes of a step, by kind of operation."""

    flops: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    each: list[tuple[str, int, int]] = field(default_factory=list)
    """Kind, operations and bytes of each, in order."""

    def add(self, kind: str, flops: int, moved: int) -> None:
        self.flops[kind] += flops
        self.bytes[kind] += moved
        self.calls[kind] += 1
        self.each.append((kind, flops, moved))

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds."""
        return sum(max(flops / ceilings.flops, moved / ceilings.bandwidth) for _, flops, moved in self.each)

    def seconds(self, kind: str, ceilings: Ceilings) -> float:
        own = [(flops, moved) for name, flops, moved in self.each if name == kind]
        return sum(max(flops / ceilings.flops, moved / ceilings.bandwidth) for flops, moved in own)


class _Counter(TorchDispatchMode):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        result = function(*arguments, **(kwargs or {}))
        name = function.overloadpacket.__name__
        read = [leaf for leaf in tree_leaves((arguments, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if function.is_view or name in ("detach", "empty", "empty_like", "new_empty", "empty_strided"):
            return result
        formula = flop_registry.get(function.overloadpacket)
        flops = formula(*arguments, **(kwargs or {}), out_val=result) if formula else 0
        self.count.add(_kind(name, bool(formula)), flops, sum(t.numel() * t.element_size() for t in read + written))
        return result


def _kind(name: str, product: bool) -> str:
    if product:
        return MATRIX
    if "batch_norm" in name:
        return "BN"
    if "foreach" in name:
        return "Eq. 2 as counted in bf16"
    if name in ("_to_copy", "copy_", "clone", "cat"):
        return "copies and casts"
    return "the rest (ReLU, residuals, loss, ...)"


def count_step(encoder: str, size: int, batch: int, queue: int, bn_group: int | None, small_stem: bool) -> Count:
    """A step of MoCo v2: both encoders' forward passes and the backward pass in bf16, SGD and Eq. 2 in float32."""
    count = Count()
    with torch.device("meta"):
        moco = MoCo(build_encoder(encoder, small_stem), queue_size=queue, head="mlp", bn_group=bn_group)
        moco.to(memory_format=torch.channels_last)
        for module in moco.modules():  # what autocast casts; BN's parameters stay as they are
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
        views = [torch.empty(batch, 3, size, size, dtype=torch.bfloat16) for _ in range(2)]
        views = [view.to(memory_format=torch.channels_last) for view in views]
        # There is no autocast for tensors without a device.
        with mock.patch("torch.autocast", return_value=nullcontext()), _Counter(count):
            moco(*views).loss.backward()
    weights = sum(p.numel() for p in moco.query.parameters())
    # Read weights, gradients, momenta and write weights, momenta; read both and write the key encoder's; cast both.
    for number, moved in (("SGD", 20), ("Eq. 2", 12), ("casts to bf16", 2 * (4 + 2))):
        count.add(number, 0, moved * weights)
    return count


def report(count: Count, batch: int) -> list[str]:
    """A table: by kind the operations, bytes and the floor on each machine of the datasheet."""
    lines = [
        f"| | operations | TFLOP | GB | {' | '.join(f'{name}, ms' for name in DATASHEET)} |",
        "| --- " * (4 + len(DATASHEET)) + "|",
    ]
    for kind in sorted(count.calls, key=lambda kind: -count.bytes[kind]):
        times = " | ".join(f"{1e3 * count.seconds(kind, ceilings):.1f}" for ceilings in DATASHEET.values())
        lines.append(
            f"| {kind} | {count.calls[kind]:,} | {count.flops[kind] / 1e12:.2f} | {count.bytes[kind] / 1e9:.1f} "
            f"| {times} |"
        )
    floors = [count.floor(ceilings) for ceilings in DATASHEET.values()]
    times = " | ".join(f"**{1e3 * floor:.1f}**" for floor in floors)
    calls, flops, moved = (sum(part.values()) for part in (count.calls, count.flops, count.bytes))
    lines.append(f"| **step** | {calls:,} | {flops / 1e12:.2f} | {moved / 1e9:.1f} | {times} |")
    rates = " | ".join(f"{batch / floor:,.0f}" for floor in floors)
    lines.append(f"| **images/s** | | | | {rates} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.count", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--bn-group", type=int, default=32, help="0: over the batch")
    options = parser.parse_args(arguments)
    count = count_step(
        options.encoder, options.size, options.batch, options.queue, options.bn_group or None, options.size <= 96
    )
    print("\n".join(report(count, options.batch)))


if __name__ == "__main__":
    main()
