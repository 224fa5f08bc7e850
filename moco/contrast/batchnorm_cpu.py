"""Batch normalisation in groups on a CPU, with what follows it in a residual block.

PyTorch's layer knows one group, so groups are a loop over it and a copy, and then the residual and ReLU are passes over
memory of their own. Here the threads divide the groups, and a kernel reads a group twice, the second time from the
core's cache. As in `batchnorm_gpu`, a batch is rows (images and positions) of channels, as channels-last tensors lie in
memory.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from moco.contrast.compiled import compiled, rounded_to_bf16
from moco.contrast.threads import in_threads

_DTYPES = (torch.float32, torch.bfloat16)
_BLOCK = 2048
"""Values that are float32 in the core's first cache at once: about so many, of whole rows."""
_ZERO, _NOTHING = np.float32(0), np.uint32(0)
_HALF = np.uint32(16)
"""Bits of a float32 that bf16 has not."""


def fits(input: Tensor, residual: Tensor | None, groups: int) -> bool:
    """Whether `batch_norm` takes it: float32 or bf16 on a CPU, its channels last in memory, in several groups."""
    if input.device.type != "cpu" or input.dtype not in _DTYPES or groups < 2:
        return False
    if residual is not None and (residual.dtype, residual.shape) != (input.dtype, input.shape):
        return False
    rows = input.movedim(1, -1)
    return rows.is_contiguous() and rows.numel() > groups * input.shape[1]


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

    The arguments are those of `batchnorm_gpu.batch_norm`; weight, bias and the running statistics have any dtype.
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
        output = torch.empty_like(input)
        channels = input.shape[1]
        rows = input.numel() // channels // groups
        mean, variance, scale, shift = np.empty((4, groups, channels), np.float32)
        affine = [
            np.empty(0, np.float32) if given is None else given.detach().float().numpy() for given in (weight, bias)
        ]
        x, y = _values(input), _values(output)
        added = x[:0] if residual is None else _values(_in_rows(residual))

        def work(first: int, last: int) -> None:
            portion = (first, last, rows, channels)
            _normalise(x, added, y, portion, *affine, eps, relu, mean, variance, scale, shift)

        in_threads(work, groups, _portion(groups))
        if running is not None:
            unbiased = variance.mean(axis=0) * (rows / (rows - 1))
            for moved, value in zip(running, (mean.mean(axis=0), unbiased), strict=False):
                moved.lerp_(torch.from_numpy(value).to(moved.dtype), momentum)
            running[2].add_(1)
        # Where ReLU cuts off follows from the input; with a residual, from the output, which is in memory anyway.
        cut_by_output = relu and residual is not None
        ctx.save_for_backward(input, weight, output if cut_by_output else None)
        ctx.statistics = (mean, variance, scale, shift)
        ctx.eps, ctx.relu, ctx.residual = eps, relu, residual is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, output = ctx.saved_tensors
        mean, variance, scale, shift = ctx.statistics
        groups, channels = mean.shape
        rows = input.numel() // channels // groups
        gradient = _in_rows(gradient)
        of_input = torch.empty_like(input)
        # What ReLU let through is the residual's gradient, or without ReLU the gradient itself.
        of_residual = None if not ctx.residual else gradient if output is None else torch.empty_like(input)
        x, dy, dx = _values(input), _values(gradient), _values(of_input)
        y = x[:0] if output is None else _values(output)
        passed = x[:0] if output is None or of_residual is None else _values(of_residual)
        sums, cut = np.empty((2, groups, channels), np.float32), ctx.relu and output is None

        def work(first: int, last: int) -> None:
            portion = (first, last, rows, channels)
            _gradients(x, dy, y, passed, dx, portion, cut, ctx.eps, mean, variance, scale, shift, sums)

        in_threads(work, groups, _portion(groups))
        of_affine = (None, None) if weight is None else torch.from_numpy(sums.sum(axis=1)).to(weight.dtype).unbind()
        return of_input, *of_affine, of_residual, None, None, None, None, None


def _portion(groups: int) -> int:
    """How many of the groups a thread takes: one call each, as a call of a thread costs as much as a small group."""
    return -(-groups // torch.get_num_threads())


def _in_rows(tensor: Tensor) -> Tensor:
    """The same, its channels last in memory; with a copy where it must be."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _values(tensor: Tensor) -> NDArray[Any]:
    """All in the order of memory: float32, or the bits of bf16 as uint16."""
    flat = tensor.detach().movedim(1, -1).view(-1)
    return (flat.view(torch.uint16) if tensor.dtype == torch.bfloat16 else flat).numpy()


def _float(context, bits):
    """uint32 as the float32 of these bits."""
    return types.float32(types.uint32), lambda context, builder, _, values: builder.bitcast(values[0], ir.FloatType())


def _bits(context, value):
    """float32 as the uint32 of its bits."""
    return types.uint32(types.float32), lambda context, builder, _, values: builder.bitcast(values[0], ir.IntType(32))


_float_of: Any = intrinsic(_float)
_bits_of: Any = intrinsic(_bits)


def _read(stored):
    """The float32 of a value in memory."""


@overload(_read)
def _read_either(stored):
    if stored == types.uint16:
        return lambda stored: _float_of(np.uint32(stored) << _HALF)
    return lambda stored: stored


def _write(values, i, value):
    """Stores a float32, in bf16 rounded."""


@overload(_write)
def _write_either(values, i, value):
    def as_bf16(values, i, value):
        values[i] = rounded_to_bf16(_bits_of(value))

    def as_it_is(values, i, value):
        values[i] = value

    return as_bf16 if values.dtype == types.uint16 else as_it_is


@compiled
def _if(condition, value):
    """The float32, or 0. A choice between two numbers is not compiled to vectors, this is."""
    return _float_of(_bits_of(value) & (_NOTHING - np.uint32(condition)))


@compiled
def _tiled(each, tile):
    """A number of each channel, beside every value of a block."""
    for start in range(0, len(tile), len(each)):
        tile[start : start + len(each)] = each


@compiled
def _summed(tile, each):
    """The sums of each channel from those of a block, in float64."""
    each[:] = 0.0
    for start in range(0, len(tile), len(each)):
        for c in range(len(each)):
            each[c] += tile[start + c]


@compiled
def _normalise(input, residual, output, portion, weight, bias, eps, relu, mean, variance, scale, shift):
    """A group twice: its statistics, then its values.

    Sums of squares are of the differences to the first row, as otherwise they would lose a variance far below the mean.
    """
    first_group, last_group, rows, channels = portion
    block = max(1, _BLOCK // channels) * channels
    origin, sums, squares = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    total, squared = np.empty(channels, np.float64), np.empty(channels, np.float64)
    factor, summand = np.empty(block, np.float32), np.empty(block, np.float32)
    least = _ZERO if relu else np.float32(-np.inf)
    for group in range(first_group, last_group):
        start, stop = group * rows * channels, (group + 1) * rows * channels
        for c in range(channels):
            mean[group, c] = _read(input[start + c])
        _tiled(mean[group], origin)
        sums[:] = _ZERO
        squares[:] = _ZERO
        for place in range(start, stop, block):
            x = input[place : min(place + block, stop)]
            for i in range(len(x)):
                apart = _read(x[i]) - origin[i]
                sums[i] += apart
                squares[i] += apart * apart
        _summed(sums, total)
        _summed(squares, squared)
        for c in range(channels):
            apart = total[c] / rows
            mean[group, c] = np.float32(mean[group, c] + apart)
            variance[group, c] = np.float32(max(squared[c] / rows - apart * apart, 0.0))
            inverse = np.float32(1.0 / np.sqrt(variance[group, c] + eps))
            scale[group, c] = inverse * weight[c] if len(weight) else inverse
            shift[group, c] = (bias[c] if len(bias) else _ZERO) - mean[group, c] * scale[group, c]
        _tiled(scale[group], factor)
        _tiled(shift[group], summand)
        for place in range(start, stop, block):
            x, y = input[place : min(place + block, stop)], output[place : min(place + block, stop)]
            if len(residual):
                added = residual[place : min(place + block, stop)]
                for i in range(len(x)):
                    value = _read(x[i]) * factor[i] + summand[i] + _read(added[i])
                    _write(y, i, np.maximum(value, least))
            else:
                for i in range(len(x)):
                    value = _read(x[i]) * factor[i] + summand[i]
                    _write(y, i, np.maximum(value, least))


@compiled
def _gradients(input, gradient, output, of_residual, of_input, portion, cut, eps, mean, variance, scale, shift, sums):
    """The gradient of the input, that of the residual where ReLU cut it off, and each group's of weight and bias."""
    first_group, last_group, rows, channels = portion
    block = max(1, _BLOCK // channels) * channels
    total, product, middle = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    factor, summand = np.empty(block, np.float32), np.empty(block, np.float32)
    of_bias, of_weight = np.empty(channels, np.float64), np.empty(channels, np.float64)
    along, constant = np.empty(channels, np.float32), np.empty(channels, np.float32)
    least = _ZERO if cut else np.float32(-np.inf)
    for group in range(first_group, last_group):
        start, stop = group * rows * channels, (group + 1) * rows * channels
        _tiled(mean[group], middle)
        _tiled(scale[group], factor)
        _tiled(shift[group], summand)
        total[:] = _ZERO
        product[:] = _ZERO
        for place in range(start, stop, block):
            end = min(place + block, stop)
            x, dy = input[place:end], gradient[place:end]
            if len(output):
                y, passed = output[place:end], of_residual[place:end]
                for i in range(len(x)):
                    _write(passed, i, _if(_read(y[i]) > _ZERO, _read(dy[i])))
                for i in range(len(x)):
                    slope = _read(passed[i])
                    total[i] += slope
                    product[i] += slope * (_read(x[i]) - middle[i])
            else:
                for i in range(len(x)):
                    value = _read(x[i])
                    slope = _if(value * factor[i] + summand[i] > least, _read(dy[i]))
                    total[i] += slope
                    product[i] += slope * (value - middle[i])
        _summed(total, of_bias)
        _summed(product, of_weight)
        for c in range(channels):
            inverse = 1.0 / np.sqrt(variance[group, c] + eps)
            sums[0, group, c] = np.float32(of_weight[c] * inverse)
            sums[1, group, c] = np.float32(of_bias[c])
            # dx = scale (dy - mean(dy) - (x - mean) inverse^2 mean(dy (x - mean)))
            along[c] = np.float32(of_weight[c] * inverse * inverse / rows)
            constant[c] = np.float32(mean[group, c] * along[c] - of_bias[c] / rows)
        _tiled(along, total)
        _tiled(constant, product)
        slopes = of_residual if len(output) else gradient
        for place in range(start, stop, block):
            end = min(place + block, stop)
            x, dy, dx = input[place:end], slopes[place:end], of_input[place:end]
            for i in range(len(x)):
                value = _read(x[i])
                slope = _if(value * factor[i] + summand[i] > least, _read(dy[i]))
                _write(dx, i, factor[i] * (slope - value * total[i] + product[i]))
