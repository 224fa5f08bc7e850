"""The CPU's kernels of BN give what PyTorch's layer gives on each group, in float64."""

import copy

import pytest
import torch
from torch import nn

from moco.contrast import GroupBatchNorm, group_batch_norm
from tests.contrast.fused import KINDS, SHAPES, require_each_group_normalised, require_precise_statistics_of_bf16

cpu = pytest.importorskip(
    "moco.contrast.batchnorm_cpu", reason="Numba has no wheels for this Python", exc_type=ImportError
)
DEVICE = torch.device("cpu")


@SHAPES
@KINDS
def test_every_group_is_normalised_on_its_own(shape, groups, affine, residual, relu):
    require_each_group_normalised(cpu, DEVICE, shape, groups, affine, residual, relu)


def test_statistics_of_bf16_have_full_precision():
    require_precise_statistics_of_bf16(cpu, DEVICE)


def layer_and_input(dtype: torch.dtype) -> tuple[GroupBatchNorm, torch.Tensor, torch.Tensor]:
    layer = group_batch_norm(nn.BatchNorm2d(24), 4)
    assert isinstance(layer, GroupBatchNorm)
    nn.init.normal_(layer.weight)
    x, residual = torch.randn(2, 16, 24, 7, 7).to(dtype)
    return layer, x.to(memory_format=torch.channels_last), residual


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("relu", [True, False])
def test_a_layer_with_the_kernels_is_the_layer_without_in_float64(dtype, tolerance, relu):
    layer, x, residual = layer_and_input(dtype)
    gradient, results = torch.randn(x.shape).to(dtype), []
    for own, exact in ((copy.deepcopy(layer).double(), torch.float64), (layer, dtype)):
        inputs = [tensor.to(exact).requires_grad_() for tensor in (x, residual)]
        output = own(*inputs, relu)
        assert (type(output.grad_fn).__name__ == "_BatchNormBackward") == (exact == dtype)
        if exact == torch.float64:
            gradient[output.abs() < 0.05] = 0  # at the edge of ReLU rounding decides
        output.backward(gradient.to(exact))
        results.append([output, *(each.grad for each in (*inputs, *own.parameters())), *own.buffers()])
        assert all(each.dtype == dtype for each in results[-1][:3]) or exact == torch.float64
    for expected, mine in zip(*results, strict=True):
        assert (mine.double() - expected).norm() <= tolerance * expected.double().norm()


def test_a_layer_that_is_bf16_itself_takes_them_too():
    layer, x, residual = layer_and_input(torch.bfloat16)
    layer.bfloat16()
    output = layer(x, residual, True)
    output.sum().backward()
    assert type(output.grad_fn).__name__ == "_BatchNormBackward"
    assert layer.weight.grad.dtype == layer.running_mean.dtype == torch.bfloat16
    assert not torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))


def test_threads_do_not_change_a_bit():
    layer, x, residual = layer_and_input(torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            inputs = [tensor.clone().requires_grad_() for tensor in (x, residual)]
            output = layer(*inputs, True)
            output.sum().backward()
            results.append([output, *(each.grad for each in inputs)])
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_stays_that_in_its_group_and_channel(dtype):
    layer, x, residual = layer_and_input(dtype)
    x[5, 3, 1, 1] = float("nan")
    output = layer(x, residual, True)
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[4:8, 3] = True  # the group of 4 and the channel
    assert torch.equal(output.isnan().flatten(2).all(dim=2), expected)
    assert torch.equal(output.isnan().flatten(2).any(dim=2), expected)


def test_what_the_kernels_do_not_take():
    channels_last = torch.zeros(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    assert cpu.fits(channels_last, channels_last, 2)
    for x, groups in (
        (torch.zeros(4, 8, 3, 3), 2),  # channels first
        (channels_last.double(), 2),
        (channels_last, 1),  # one group is no work for several threads: PyTorch's layer divides it
        (torch.zeros(4, 8), 4),  # one value a group
        (channels_last.to("meta"), 2),
    ):
        assert not cpu.fits(x, None, groups)
    assert not cpu.fits(channels_last, channels_last.bfloat16(), 2)
