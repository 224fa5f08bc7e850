"""The weights' gradient by a product is PyTorch's, in float64; a placed module keeps its layers and its state dict."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moco.runtime import device as device_module
from moco.runtime.convolution import ProductConv2d, product_gradients, weight_gradient
from moco.runtime.device import Device


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    channels_last=st.booleans(),
)
def test_the_product_is_the_gradient_of_the_weights(kernel, stride, padding, size, channels_last):
    x = torch.randn(3, 2, *size, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(5, 2, *kernel, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(x, weight, None, stride, padding)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    torch.testing.assert_close(weight_gradient(gradient, x, weight.shape[2:], stride, padding), weight.grad)


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients, of the input too, under bf16 autocast."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    (output.float() * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    assert x.grad is not None
    return [output, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "stride": 2, "bias": False}, {"kernel_size": 1}])
def test_a_convolution_gives_what_it_gave(options):
    plain = nn.Conv2d(8, 32, **{"kernel_size": 3, **options})
    mine = copy.deepcopy(plain)
    product_gradients(mine)
    x = torch.randn(4, 8, 4, 4)
    assert type(mine) is ProductConv2d
    for ours, expected in zip(gradients(mine, x), gradients(plain, x), strict=True):
        assert ours.dtype == expected.dtype
        assert ours.shape == expected.shape
        assert (ours.float() - expected.float()).norm() <= 0.01 * expected.float().norm()


def test_the_product_is_taken_where_a_map_has_few_places_for_its_channels(monkeypatch):
    taken = []
    monkeypatch.setattr(
        "moco.runtime.convolution.weight_gradient",
        lambda gradient, *_: taken.append(tuple(gradient.shape[2:])) or torch.zeros(32, 8, 3, 3, dtype=torch.bfloat16),
    )
    layer = nn.Conv2d(8, 32, 3, padding=1)
    product_gradients(layer)
    for size in (4, 5, 16):
        gradients(layer, torch.randn(2, 8, size, size))
    assert taken == [(4, 4)]  # 16 places: half of 32 channels
    layer(torch.randn(2, 8, 4, 4)).sum().backward()  # in float32
    assert taken == [(4, 4)]


def test_other_convolutions_stay_as_they_are():
    kept = [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding_mode="reflect")]
    module = nn.Sequential(*kept, nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3))
    before = module.state_dict().keys()
    product_gradients(module)
    assert [type(layer) for layer in module] == [nn.Conv2d] * 3 + [nn.Conv1d, ProductConv2d]
    assert module.state_dict().keys() == before


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"), [(True, True, ProductConv2d), (False, True, nn.Conv2d), (True, False, nn.Conv2d)]
)
def test_a_device_places_a_module(monkeypatch, bf16, amx, expected):
    monkeypatch.setattr(device_module, "has_amx", lambda: amx)
    module = Device(torch.device("cpu"), bf16, channels_last=True).place(nn.Conv2d(4, 8, 3))
    assert type(module) is expected
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
