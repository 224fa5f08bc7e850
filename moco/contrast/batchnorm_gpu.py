"""Batch normalisation in groups on a CUDA GPU, with what follows it in a residual block, in three kernels each way.

The step of a ResNet is bound by memory, and half of its bytes are BN's. PyTorch's layer knows one group, so groups are
a loop over it and a copy; and its statistics of channels-last tensors reach a fifth of the memory's bandwidth (H100,
bench/gpu-notes.md). Adding the residual and ReLU in the same kernel saves their passes over memory. Here a batch is
rows (images and places) of channels, as channels-last tensors lie in memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 4096
"""Values that a program works on at once."""
_WARPS = 4
_PROGRAMS = 512
"""So many, about, add up statistics: enough to keep a GPU's memory busy, few enough to be combined by one program."""
MOST_GROUPS = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(input: Tensor, residual: Tensor | None, groups: int) -> bool:
    """Whether `batch_norm` takes it: float32, bf16 or fp16 on a CUDA GPU, its channels last in memory."""
    if not input.is_cuda or input.dtype not in _DTYPES or groups > MOST_GROUPS:
        return False
    if residual is not None and (residual.dtype, residual.shape) != (input.dtype, input.shape):
        return False
    rows = _rows_of_channels(input)
    return rows is not None and len(rows) > groups  # a single value has no deviation; PyTorch's layer says so


def _rows_of_channels(input: Tensor) -> Tensor | None:
    """(n, channels, ...) as (rows, channels), without a copy; None where its memory is not in that order."""
    rows = input.movedim(1, -1)
    return rows.view(-1, input.shape[1]) if rows.is_contiguous() else None


def _in_rows(tensor: Tensor) -> Tensor:
    """The same, with a copy where it must be."""
    rows = _rows_of_channels(tensor)
    return tensor.movedim(1, -1).contiguous().view(-1, tensor.shape[1]) if rows is None else rows


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor, Tensor] | None,
    groups: int,
    momentum: float,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """The input (n, channels, ...), normalised over each of `groups` equal groups of n; differentiable once.

    Args:
        input: what `fits`.
        weight, bias: (channels,), both or neither.
        running: the mean and variance, float32 (channels,), which move by `momentum` towards the mean of the groups'
            statistics, and the count of batches, int64 scalar.
        eps: added to the variance.
        residual: of the input's shape and dtype, is added to the normalised values.
        relu: what is negative then becomes 0.
    """
    output: Tensor = _BatchNorm.apply(input, weight, bias, residual, running, groups, momentum, eps, relu)
    return output


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running: tuple[Tensor, Tensor, Tensor] | None,
        groups: int,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> Tensor:
        x, added = _in_rows(input), None if residual is None else _in_rows(residual)
        output = torch.empty_like(input)
        channels, rows = x.shape[1], len(x) // groups
        by, split, splits = _shape(rows, channels, groups)
        partial = x.new_empty((2, groups * splits, channels), dtype=torch.float32)
        statistics = x.new_empty((2, groups, channels), dtype=torch.float32)
        _add_up[(groups, splits, by.blocks)](
            x, partial, groups * splits, rows, split, channels, *by.tile, num_warps=_WARPS
        )
        moved = (None, None, None) if running is None else running
        _combine[(triton.cdiv(channels, 16),)](
            partial, statistics, *moved, groups, splits, rows, split, channels, momentum, eps, *_padded(groups, splits)
        )
        _normalise[(triton.cdiv(rows, by.tile[0]), groups, by.blocks)](
            x,
            _in_rows(output),
            added,
            statistics,
            weight,
            bias,
            groups,
            rows,
            channels,
            *by.tile,
            relu,
            num_warps=_WARPS,
        )
        # Where ReLU cuts off follows from the input; with a residual, from the output, which is in memory anyway.
        ctx.save_for_backward(input, weight, bias, statistics, output if relu and residual is not None else None)
        ctx.groups, ctx.relu, ctx.residual = groups, relu, residual is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, statistics, output = ctx.saved_tensors
        groups = ctx.groups
        x, dy, y = _in_rows(input), _in_rows(gradient), None if output is None else _in_rows(output)
        channels, rows = x.shape[1], len(x) // groups
        by, split, splits = _shape(rows, channels, groups)
        partial = x.new_empty((2, groups * splits, channels), dtype=torch.float32)
        sums = x.new_empty((2, groups, channels), dtype=torch.float32)
        of_affine = x.new_empty((2, channels), dtype=torch.float32)
        # What ReLU let through is the residual's gradient, or without ReLU the gradient itself.
        of_residual = None if not ctx.residual else gradient if y is None else torch.empty_like(input)
        dr = None if of_residual is None or y is None else _in_rows(of_residual)
        cut = ctx.relu and y is None
        affine = (weight, bias) if cut else (None, None)
        _add_up_gradients[(groups, splits, by.blocks)](
            x,
            dy,
            y,
            dr,
            statistics,
            *affine,
            partial,
            groups,
            groups * splits,
            rows,
            split,
            channels,
            *by.tile,
            cut,
            num_warps=_WARPS,
        )
        _combine_gradients[(triton.cdiv(channels, 16),)](
            partial, sums, of_affine, groups, splits, channels, *_padded(groups, splits)
        )
        dx = torch.empty_like(input)
        _normalise_gradient[(triton.cdiv(rows, by.tile[0]), groups, by.blocks)](
            x,
            dy if dr is None else dr,
            _in_rows(dx),
            statistics,
            sums,
            weight,
            bias,
            groups,
            rows,
            channels,
            *by.tile,
            cut,
            num_warps=_WARPS,
        )
        of_weights = (None, None) if weight is None else of_affine.to(weight.dtype).unbind()
        return dx, *of_weights, of_residual, None, None, None, None, None


class _Tiles:
    """How rows and channels are divided among programs: tiles of some rows by some channels."""

    def __init__(self, channels: int) -> None:
        width = min(128, triton.next_power_of_2(channels))
        self.tile = (_TILE // width, width)
        self.blocks = triton.cdiv(channels, width)


def _shape(rows: int, channels: int, groups: int) -> tuple[_Tiles, int, int]:
    """The tiles, and in how many splits of how many rows each group's statistics are added up."""
    by = _Tiles(channels)
    splits = max(1, min(_PROGRAMS // (groups * by.blocks), triton.cdiv(rows, by.tile[0])))
    split = triton.cdiv(triton.cdiv(rows, splits), by.tile[0]) * by.tile[0]
    return by, split, triton.cdiv(rows, split)


def _padded(groups: int, splits: int) -> tuple[int, int]:
    return triton.next_power_of_2(groups), triton.next_power_of_2(splits)


@triton.jit
def _tile(rows, channels, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """A program's group and channels, and the places of its rows of them; which of these there are."""
    number, group, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = block * WIDTH + tl.arange(0, WIDTH)
    row = number * ROWS + tl.arange(0, ROWS)
    known = channel < channels
    place = (group * rows + row).to(tl.int64)[:, None] * channels + channel[None, :]
    return group, channel, known, place, (row < rows)[:, None] & known[None, :]


@triton.jit
def _splits(groups, splits, channels, GROUPS: tl.constexpr, SPLITS: tl.constexpr):
    """A program's channels, and the places of what was added up: of each group and split, and of each group."""
    channel = tl.program_id(0) * 16 + tl.arange(0, 16)
    group, number = tl.arange(0, GROUPS), tl.arange(0, SPLITS)
    own = (group < groups)[:, None] & (channel < channels)[None, :]
    known = own[:, None, :] & (number < splits)[None, :, None]
    place = (group[:, None, None] * splits + number[None, :, None]) * channels + channel[None, None, :]
    return channel, number, known, place, own, group[:, None] * channels + channel[None, :]


@triton.jit
def _add_up(x, partial, length, rows, split, channels, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Mean and summed squared deviations of a split's rows, by Welford's rule along and Chan's across the tile."""
    group, number, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = block * WIDTH + tl.arange(0, WIDTH)
    row = tl.arange(0, ROWS)
    here = tl.minimum(split, rows - number * split)
    start = x + (group * rows + number * split).to(tl.int64) * channels
    mean = tl.zeros((ROWS, WIDTH), tl.float32)
    deviations = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, here, ROWS):
        known = (first + row < here)[:, None] & (channel < channels)[None, :]
        value = tl.load(start + (first + row).to(tl.int64)[:, None] * channels + channel[None, :], known, 0.0)
        weight = 1.0 / (first // ROWS + 1)
        delta = tl.where(known, value.to(tl.float32) - mean, 0.0)
        mean += delta * weight
        deviations += delta * delta * (1.0 - weight)
    # Rows of the tile that ran over the end have one value less.
    counts = ((here - row + ROWS - 1) // ROWS).to(tl.float32)[:, None]
    total = tl.sum(counts * mean, 0) / here
    apart = mean - total[None, :]
    deviations = tl.sum(deviations + counts * apart * apart, 0)
    place = (group * tl.num_programs(1) + number) * channels + channel
    tl.store(partial + place, total, channel < channels)
    tl.store(partial + length * channels + place, deviations, channel < channels)


@triton.jit
def _combine(
    partial,
    statistics,
    running_mean,
    running_variance,
    tracked,
    groups,
    splits,
    rows,
    split,
    channels,
    momentum,
    eps,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Each group's mean and 1 / standard deviation from its splits; the running statistics."""
    channel, number, known, place, own, own_place = _splits(groups, splits, channels, GROUPS, SPLITS)
    means = tl.load(partial + place, known, 0.0)
    deviations = tl.load(partial + groups * splits * channels + place, known, 0.0)
    counts = tl.maximum(tl.minimum(split, rows - number * split), 0).to(tl.float32)[None, :, None]
    mean = tl.sum(means * counts, 1) / rows
    apart = tl.where(known, means - mean[:, None, :], 0.0)
    variance = tl.sum(deviations + counts * apart * apart, 1) / rows
    tl.store(statistics + own_place, mean, own)
    tl.store(statistics + groups * channels + own_place, 1.0 / tl.sqrt(variance + eps), own)
    if running_mean is not None:
        unbiased = tl.where(own, variance, 0.0) * (rows / (rows - 1.0))
        before = tl.load(running_mean + channel, channel < channels)
        after = before + momentum * (tl.sum(mean, 0) / groups - before)
        tl.store(running_mean + channel, after, channel < channels)
        before = tl.load(running_variance + channel, channel < channels)
        after = before + momentum * (tl.sum(unbiased, 0) / groups - before)
        tl.store(running_variance + channel, after, channel < channels)
        if tl.program_id(0) == 0:
            tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def _line(statistics, weight, bias, group, groups, channel, channels):
    """What BN of a group is: a factor and a summand of each channel."""
    known = channel < channels
    mean = tl.load(statistics + group * channels + channel, known, 0.0)
    scale = tl.load(statistics + (groups + group) * channels + channel, known, 0.0)
    shift = -mean * scale
    if weight is not None:
        factor = tl.load(weight + channel, known, 0.0).to(tl.float32)
        shift = shift * factor + tl.load(bias + channel, known, 0.0).to(tl.float32)
        scale *= factor
    return scale, shift


@triton.jit
def _normalise(
    x,
    y,
    residual,
    statistics,
    weight,
    bias,
    groups,
    rows,
    channels,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    RELU: tl.constexpr,
):
    group, channel, _, place, inside = _tile(rows, channels, ROWS, WIDTH)
    scale, shift = _line(statistics, weight, bias, group, groups, channel, channels)
    value = tl.load(x + place, inside).to(tl.float32) * scale[None, :] + shift[None, :]
    if residual is not None:
        value += tl.load(residual + place, inside).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(y + place, value.to(y.dtype.element_ty), inside)


@triton.jit
def _add_up_gradients(
    x,
    dy,
    y,
    dr,
    statistics,
    weight,
    bias,
    partial,
    groups,
    length,
    rows,
    split,
    channels,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CUT: tl.constexpr,
):
    """Of a split's rows the sums of dy and of dy times the normalised x, where ReLU let them through.

    Where that was follows from y, if it is given, and what is left of dy is written to dr; if CUT, from x.
    """
    group, number, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = block * WIDTH + tl.arange(0, WIDTH)
    row = tl.arange(0, ROWS)
    mean = tl.load(statistics + group * channels + channel, channel < channels, 0.0)
    scale = tl.load(statistics + (groups + group) * channels + channel, channel < channels, 0.0)
    if CUT:
        factor, shift = _line(statistics, weight, bias, group, groups, channel, channels)
    here = tl.minimum(split, rows - number * split)
    start = (group * rows + number * split).to(tl.int64) * channels
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    along = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, here, ROWS):
        known = (first + row < here)[:, None] & (channel < channels)[None, :]
        place = start + (first + row).to(tl.int64)[:, None] * channels + channel[None, :]
        gradient = tl.load(dy + place, known, 0.0).to(tl.float32)
        value = tl.load(x + place, known, 0.0).to(tl.float32)
        if CUT:
            gradient = tl.where(value * factor[None, :] + shift[None, :] > 0.0, gradient, 0.0)
        if y is not None:
            gradient = tl.where(tl.load(y + place, known, 0.0) > 0.0, gradient, 0.0)
            tl.store(dr + place, gradient.to(dr.dtype.element_ty), known)
        total += gradient
        along += gradient * (value - mean[None, :])
    place = (group * tl.num_programs(1) + number) * channels + channel
    tl.store(partial + place, tl.sum(total, 0), channel < channels)
    tl.store(partial + length * channels + place, tl.sum(along, 0) * scale, channel < channels)


@triton.jit
def _combine_gradients(partial, sums, of_affine, groups, splits, channels, GROUPS: tl.constexpr, SPLITS: tl.constexpr):
    """Each group's sums from its splits, and over all groups: the gradients of bias and weight."""
    channel, _, known, place, own, own_place = _splits(groups, splits, channels, GROUPS, SPLITS)
    total = tl.sum(tl.load(partial + place, known, 0.0), 1)
    along = tl.sum(tl.load(partial + groups * splits * channels + place, known, 0.0), 1)
    tl.store(sums + own_place, total, own)
    tl.store(sums + groups * channels + own_place, along, own)
    tl.store(of_affine + channel, tl.sum(along, 0), channel < channels)
    tl.store(of_affine + channels + channel, tl.sum(total, 0), channel < channels)


@triton.jit
def _normalise_gradient(
    x,
    dy,
    dx,
    statistics,
    sums,
    weight,
    bias,
    groups,
    rows,
    channels,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CUT: tl.constexpr,
):
    group, channel, known, place, inside = _tile(rows, channels, ROWS, WIDTH)
    mean = tl.load(statistics + group * channels + channel, known)
    scale = tl.load(statistics + (groups + group) * channels + channel, known)
    total = tl.load(sums + group * channels + channel, known) / rows
    along = tl.load(sums + (groups + group) * channels + channel, known) / rows
    factor = scale
    if weight is not None:
        factor = scale * tl.load(weight + channel, known).to(tl.float32)
    value = tl.load(x + place, inside).to(tl.float32)
    gradient = tl.load(dy + place, inside).to(tl.float32)
    if CUT:
        line, shift = _line(statistics, weight, bias, group, groups, channel, channels)
        gradient = tl.where(value * line[None, :] + shift[None, :] > 0.0, gradient, 0.0)
    value = (value - mean[None, :]) * scale[None, :]
    result = factor[None, :] * (gradient - total[None, :] - value * along[None, :])
    tl.store(dx + place, result.to(dx.dtype.element_ty), inside)
