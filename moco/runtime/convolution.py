"""Convolutions in bf16 on a CPU with AMX: the weights' gradient by one matrix product where oneDNN's kernel is slow.

oneDNN's kernel of that gradient reaches 15 to 100 GFLOP/s a core on small feature maps, its matrix product some 300
(bench/notes.md). And its threads wait for one another without sleeping: where something else computes on one of their
cores, a call takes up to a second.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def product_gradients(module: nn.Module) -> None:
    """Makes each convolution of the module take the gradient of its weights by a matrix product, where that is faster.

    The layers stay, and so do their weights and the state dict; what they compute is the same up to rounding. Layers
    derived from `nn.Conv2d`, in groups, dilated, or padded otherwise than with zeros stay as they are.
    """
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
        ):
            layer.__class__ = ProductConv2d


class ProductConv2d(nn.Conv2d):
    """`nn.Conv2d`, whose gradient of the weights is a matrix product in bf16 where the feature map is small."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        trained = torch.is_grad_enabled() and weight.requires_grad
        plain: Tensor
        if not bf16 or not trained or torch.compiler.is_compiling() or input.ndim != 4 or isinstance(self.padding, str):
            plain = super()._conv_forward(input, weight, bias)
            return plain
        output: Tensor = _Convolution.apply(input.bfloat16(), weight.bfloat16(), self.stride, self.padding)
        return output if bias is None else output + bias.bfloat16()[:, None, None]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
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


def weight_gradient(
    gradient: Tensor, input: Tensor, kernel: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
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
    product = gradient.permute(0, 2, 3, 1).reshape(-1, channels_out).t() @ columns
    return product.view(channels_out, high, wide, channels_in).permute(0, 3, 1, 2)
