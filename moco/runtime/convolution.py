"""Convolutions of small feature maps on a CPU by matrix products, where oneDNN's kernels are slow (bench/notes.md).

A map of few positions, such as 2x2 under a 3x3 kernel, is mostly padding, which oneDNN multiplies too: there the
convolution is a fully connected layer, which takes a third of the time. In bf16 with AMX, oneDNN's kernel of the
weights' gradient reaches 15 to 100 GFLOP/s a core on small maps, a matrix product some 300; and its threads wait for
one another without sleeping: where something else computes on one of their cores, a call takes up to a second.
"""

from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pair = tuple[int, int]


def use_products(module: nn.Module, amx: bool) -> None:
    """Makes each convolution of the module a matrix product, or its weights' gradient, where that is faster.

    The layers stay, and so do their weights and the state dict; what they compute is the same up to rounding. Layers
    derived from `nn.Conv2d`, in groups, dilated, or padded otherwise than with zeros stay as they are.

    Args:
        amx: it will be trained in bf16 on a processor with AMX.
    """
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            layer.__class__ = AmxProductConv2d if amx else ProductConv2d


class ProductConv2d(nn.Conv2d):
    """`nn.Conv2d`, computed as a fully connected layer where a map has at most half as many positions as the kernel."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return (self._small_map if self._is_small(input) else self._large_map)(input, weight, bias)

    def _is_small(self, input: Tensor) -> bool:
        if torch.compiler.is_compiling() or input.ndim != 4 or input.shape[1] != self.in_channels:
            return False
        (high, wide), (height, width), padding = self.kernel_size, input.shape[2:], self.padding
        fits = height + 2 * int(padding[0]) >= high and width + 2 * int(padding[1]) >= wide
        return fits and 2 * height * width <= high * wide

    def _large_map(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain: Tensor = super()._conv_forward(input, weight, bias)
        return plain

    def _small_map(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product of the inputs, (n, positions * channels), with a weight for each pair of input and output."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        height, width = input.shape[2:]
        taps, rows, columns = _taps_between((height, width), self.kernel_size, self.stride, self.padding)
        by_tap = F.pad(weight.permute(0, 2, 3, 1).flatten(1, 2), (0, 0, 0, 1))  # channels_out, taps + 1, channels_in
        pairs = by_tap.index_select(1, torch.tensor(taps, device=weight.device))
        # Converted only now, so that a tap's gradient is summed over its pairs in the weight's own precision.
        matrix = pairs.to(dtype).view(self.out_channels * rows * columns, height * width * self.in_channels)
        inputs = input.permute(0, 2, 3, 1).reshape(len(input), height * width * self.in_channels)
        output = F.linear(inputs, matrix).view(len(input), self.out_channels, rows, columns)
        if bias is not None:
            output = output + bias.to(dtype)[:, None, None]
        # PyTorch's choice of the memory format, if either has strides of channels last.
        last = any(x.is_contiguous(memory_format=torch.channels_last) > x.is_contiguous() for x in (input, weight))
        return output.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@lru_cache
def _taps_between(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> tuple[list[int], int, int]:
    """The kernel's tap that joins each output position to each input position, all numbered by rows.

    Returns:
        The taps, (rows * columns * height * width) of them, as many as the kernel has where none joins the two; the
        output's rows and columns.
    """
    rows, columns = ((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    taps = []
    for row, column, y, x in product(range(rows), range(columns), range(size[0]), range(size[1])):
        tap_y, tap_x = y - row * stride[0] + padding[0], x - column * stride[1] + padding[1]
        joins = 0 <= tap_y < kernel[0] and 0 <= tap_x < kernel[1]
        taps.append(tap_y * kernel[1] + tap_x if joins else kernel[0] * kernel[1])
    return taps, rows, columns


class AmxProductConv2d(ProductConv2d):
    """The same; of larger maps the weights' gradient is a matrix product in bf16 where they are still small."""

    def _large_map(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        trained = torch.is_grad_enabled() and weight.requires_grad
        if not bf16 or not trained or torch.compiler.is_compiling() or input.ndim != 4:
            return super()._large_map(input, weight, bias)
        output: Tensor = _Convolution.apply(input.bfloat16(), weight.bfloat16(), self.stride, self.padding)
        return output if bias is None else output + bias.bfloat16()[:, None, None]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(input, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input, weight = ctx.saved_tensors
        kernel, (channels, rows, columns) = weight.shape[2:], gradient.shape[1:]
        # Unfolding costs as much for 32 channels as for 512, oneDNN's kernel by channel. What is 1x1 is not unfolded.
        by_product = tuple(kernel) == (1, 1) or 2 * rows * columns <= channels
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not by_product, False)
        of_input = of_weight = None
        if any(wanted):
            settings = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
            of_input, of_weight, _ = torch.ops.aten.convolution_backward(
                gradient, input, weight, None, *settings, wanted
            )
        if ctx.needs_input_grad[1] and by_product:
            of_weight = weight_gradient(gradient, input, kernel, ctx.stride, ctx.padding)
        return of_input, of_weight, None, None


def weight_gradient(gradient: Tensor, input: Tensor, kernel: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of a convolution's weights: of each tap the product of the outputs' gradients and its inputs.

    Args:
        gradient: of the outputs, (n, channels_out, rows, columns).
        input: (n, channels_in, height, width), in the same dtype.

    Returns:
        (channels_out, channels_in, *kernel).
    """
    (high, wide), (channels_out, channels_in) = kernel, (gradient.shape[1], input.shape[1])
    rows = input.permute(0, 2, 3, 1)
    if any(padding):
        rows = F.pad(rows, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    taps = rows.unfold(1, high, stride[0]).unfold(2, wide, stride[1])  # n, rows, columns, channels_in, high, wide
    columns = taps.permute(0, 1, 2, 4, 5, 3).reshape(-1, high * wide * channels_in)
    by_tap = gradient.permute(0, 2, 3, 1).reshape(-1, channels_out).t() @ columns
    return by_tap.view(channels_out, high, wide, channels_in).permute(0, 3, 1, 2)
