"""What the kernels of BN in groups are tested by, those of a GPU and those of a CPU."""

import copy
from types import ModuleType

import pytest
import torch
from torch import nn

from moco.contrast import group_batch_norm

SHAPES = pytest.mark.parametrize(
    ("shape", "groups"),
    [((8, 6, 5, 4), 2), ((6, 130, 3, 3), 3), ((4, 20, 17, 17), 1), ((9, 5, 7), 3)],
)
KINDS = pytest.mark.parametrize(
    ("affine", "residual", "relu"),
    [(True, False, False), (False, False, False), (True, False, True), (False, True, True), (True, True, False)],
)


def relative(mine: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((mine.cpu().double() - expected).norm() / expected.norm()).detach())


def require_each_group_normalised(
    fused: ModuleType,
    device: torch.device,
    shape: tuple[int, ...],
    groups: int,
    affine: bool,
    residual: bool,
    relu: bool,
) -> None:
    """What the kernels give is PyTorch's layer on each group, in float64."""
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

    layer, x = layer.to(device), x.to(device).requires_grad_()
    running = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    added = None if added is None else added.to(device).requires_grad_()
    result = fused.batch_norm(x, layer.weight, layer.bias, running, groups, 0.3, layer.eps, added, relu)
    result.backward(gradient.to(device))  # whose channels are not last in memory
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


def require_precise_statistics_of_bf16(fused: ModuleType, device: torch.device) -> None:
    x = (torch.randn(8, 16, 4, 4) + 10).bfloat16().to(device, memory_format=torch.channels_last)
    running = (torch.zeros(16, device=device), torch.ones(16, device=device), torch.tensor(0, device=device))
    result = fused.batch_norm(x, None, None, running, 2, 1.0, 1e-5)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(running[0], x.float().mean(dim=(0, 2, 3)), rtol=0, atol=1e-4)
    half = x[:4].float()
    expected = (half - half.mean((0, 2, 3), keepdim=True)) / half.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(result[:4].float(), expected, rtol=0.01, atol=0.01)
