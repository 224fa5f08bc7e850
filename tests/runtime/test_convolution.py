"""Convolutions by products are PyTorch's, in float64; a placed module keeps its layers and its state dict."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from moco.runtime import device as device_module
from moco.runtime.convolution import AmxProductConv2d, ProductConv2d, use_products, weight_gradient
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


small_maps = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(2, 5), st.integers(1, 5)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "bias": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(options=small_maps, size=st.tuples(st.integers(1, 3), st.integers(1, 3)), last=st.booleans())
def test_a_small_map_is_convolved_as_by_pytorch(options, size, last):
    kernel, padding = options["kernel_size"], options["padding"]
    assume(all(size[i] + 2 * padding[i] >= kernel[i] for i in (0, 1)))
    memory = torch.channels_last if last else torch.contiguous_format
    plain = nn.Conv2d(2, 5, **options).double().to(memory_format=memory)
    mine = copy.deepcopy(plain)
    use_products(mine, amx=False)
    assert mine._is_small(torch.empty(1, 2, *size)) == (2 * size[0] * size[1] <= kernel[0] * kernel[1])
    results = []
    for layer in (plain, mine):
        x = torch.linspace(-1, 1, 6 * size[0] * size[1], dtype=torch.float64).view(3, 2, *size)
        x = x.contiguous(memory_format=memory).requires_grad_()
        output = layer(x)
        (output * torch.arange(output.numel()).view(output.shape)).sum().backward()
        results.append([output, x.grad, *(p.grad for p in layer.parameters())])
        assert output.is_contiguous(memory_format=memory)
    for ours, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_small_map_in_bf16_sums_a_taps_gradient_in_float32():
    plain = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    mine = copy.deepcopy(plain)
    use_products(mine, amx=False)
    x = torch.randn(64, 64, 2, 2)
    exact = copy.deepcopy(plain).double()
    output = exact(x.bfloat16().double())
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape).bfloat16()).sum().backward()

    def error(layer):
        return (gradients(layer, x)[2] - exact.weight.grad).norm() / exact.weight.grad.norm()

    assert error(mine) <= 1.05 * error(plain)  # 1.5 times where the taps are summed in bf16


def test_what_does_not_fit_is_refused_as_by_pytorch():
    layer = nn.Conv2d(4, 4, 5)
    use_products(layer, amx=False)
    for wrong in (torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(4, 2, 2)):
        with pytest.raises(RuntimeError, match=r"[Kk]ernel size|channels"):
            layer(wrong)


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
    use_products(mine, amx=True)
    x = torch.randn(4, 8, 4, 4)
    assert type(mine) is AmxProductConv2d
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
    use_products(layer, amx=True)
    for size in (2, 4, 5, 16):
        gradients(layer, torch.randn(2, 8, size, size))
    assert taken == [(4, 4)]  # 16 places: half of 32 channels; 2x2 is a fully connected layer
    layer(torch.randn(2, 8, 4, 4)).sum().backward()  # in float32
    assert taken == [(4, 4)]


def test_other_convolutions_stay_as_they_are():
    kept = [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding_mode="reflect")]
    kept.append(nn.Conv2d(4, 4, 3, padding="same"))
    module = nn.Sequential(*kept, nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3))
    before = module.state_dict().keys()
    use_products(module, amx=False)
    assert [type(layer) for layer in module] == [nn.Conv2d] * 4 + [nn.Conv1d, ProductConv2d]
    assert module.state_dict().keys() == before


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"),
    [(True, True, AmxProductConv2d), (False, True, ProductConv2d), (True, False, ProductConv2d)],
)
def test_a_device_places_a_module(monkeypatch, bf16, amx, expected):
    monkeypatch.setattr(device_module, "has_amx", lambda: amx)
    module = Device(torch.device("cpu"), bf16, channels_last=True).place(nn.Conv2d(4, 8, 3))
    assert type(module) is expected
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
