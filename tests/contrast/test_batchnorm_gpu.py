"""The GPU's kernels of BN give what PyTorch's layer gives on each group, in float64."""

import copy

import pytest
import torch
from torch import nn

from moco.contrast import group_batch_norm
from tests.contrast.fused import KINDS, SHAPES, require_each_group_normalised, require_precise_statistics_of_bf16
from tests.kernels import DEVICE, kernels

gpu = kernels("moco.contrast.batchnorm_gpu")


@SHAPES
@KINDS
def test_every_group_is_normalised_on_its_own(shape, groups, affine, residual, relu):
    require_each_group_normalised(gpu, DEVICE, shape, groups, affine, residual, relu)


def test_statistics_of_bf16_have_full_precision():
    require_precise_statistics_of_bf16(gpu, DEVICE)


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
