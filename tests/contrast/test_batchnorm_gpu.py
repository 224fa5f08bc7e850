"""The GPU's kernels of BN give what PyTorch's layer gives on each group, in float64."""

import copy

import pytest
import torch
from torch import nn

from moco.contrast import group_batch_norm
from tests.kernels import DEVICE, kernels

gpu = kernels("moco.contrast.batchnorm_gpu")


def relative(mine: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((mine.cpu().double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((8, 6, 5, 4), 2), ((6, 130, 3, 3), 3), ((4, 20, 17, 17), 1), ((9, 5, 7), 3)],
)
@pytest.mark.parametrize(
    ("affine", "residual", "relu"),
    [(True, False, False), (False, False, False), (True, False, True), (False, True, True), (True, True, False)],
)
def test_every_group_is_normalised_on_its_own(shape, groups, affine, residual, relu):
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    layer = kind(shape[1], momentum=0.3, affine=affine)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    literal = group_batch_norm(copy.deepcopy(layer).double(), shape[0] // groups)
    # A mean far from 0 beside the deviation: sums of squares alone would lose the variance.
    x = (torch.randn(shape) + (0 if relu else 50)).movedim(1, -1).contiguous().movedim(-1, 1)
    expected_x = x.double().requires_grad_()
    gradient = torch.randn(shape)
    added = torch.randn(shape) if residual else None
    expected_added = None if added is None else added.double().requires_grad_()
    expected = literal(expected_x)
    if expected_added is not None:
        expected = expected + expected_added
    if relu:
        # Rounding to the other side of 0 would be no small difference: no gradient comes from there.
        gradient *= expected.detach().abs() > 1e-3
        expected = expected.relu()
    expected.backward(gradient.double())

    layer, x = layer.to(DEVICE), x.to(DEVICE).requires_grad_()
    running = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    added = None if added is None else added.to(DEVICE).requires_grad_()
    result = gpu.batch_norm(x, layer.weight, layer.bias, running, groups, 0.3, layer.eps, added, relu)
    result.backward(gradient.to(DEVICE))  # whose channels are not last in memory
    assert relative(result, expected) < 1e-4
    assert relative(x.grad, expected_x.grad) < 1e-4
    if residual:
        assert relative(added.grad, expected_added.grad) < 1e-6
    if affine:
        assert relative(layer.weight.grad, literal.weight.grad) < 1e-4
        assert relative(layer.bias.grad, literal.bias.grad) < 1e-5
    assert relative(layer.running_mean, literal.running_mean) < 1e-5
    assert relative(layer.running_var, literal.running_var) < 1e-4
    assert int(layer.num_batches_tracked) == 1


def test_statistics_of_bf16_have_full_precision():
    x = (torch.randn(8, 16, 4, 4) + 10).bfloat16().to(DEVICE, memory_format=torch.channels_last)
    running = (torch.zeros(16, device=DEVICE), torch.ones(16, device=DEVICE), torch.tensor(0, device=DEVICE))
    result = gpu.batch_norm(x, None, None, running, 2, 1.0, 1e-5)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(running[0], x.float().mean(dim=(0, 2, 3)), rtol=0, atol=1e-4)
    half = x[:4].float()
    expected = (half - half.mean((0, 2, 3), keepdim=True)) / half.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(result[:4].float(), expected, rtol=0.01, atol=0.01)


def test_what_the_kernels_do_not_take():
    channels_last = torch.zeros(4, 8, 3, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    assert gpu.fits(channels_last, channels_last, 2) == (DEVICE.type == "cuda")
    for x, groups in (
        (torch.zeros(4, 8, 3, 3, device=DEVICE), 2),  # channels first
        (channels_last.double(), 2),
        (channels_last, 1000),
        (torch.zeros(4, 8, device=DEVICE), 4),  # one value a group
    ):
        assert not gpu.fits(x, None, groups)
    assert not gpu.fits(channels_last, channels_last.bfloat16(), 2)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("group", [4, None])
def test_a_layer_on_a_gpu_is_the_layer_on_a_cpu(group):
    layer = group_batch_norm(nn.BatchNorm2d(24), group)
    nn.init.normal_(layer.weight)
    mine = copy.deepcopy(layer).to(DEVICE)
    x = torch.randn(16, 24, 7, 7).to(memory_format=torch.channels_last)
    others = torch.randn(16, 24, 7, 7), True
    on_gpu = mine(x.to(DEVICE), others[0].to(DEVICE), True)
    torch.testing.assert_close(on_gpu.cpu(), layer(x, *others), rtol=1e-4, atol=1e-4)
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(mine.get_buffer(name).cpu(), buffer, msg=name)
    assert type(mine(x.to(DEVICE)).grad_fn).__name__ == "_BatchNormBackward"
