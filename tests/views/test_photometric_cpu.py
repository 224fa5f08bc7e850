"""The kernel that finishes views on a CPU, against PyTorch's operations, which other tests hold to torchvision's."""

import itertools

import pytest
import torch

pytest.importorskip("numba")
from moco.views import PRETEXTS, CentreCrop, Parameters, Views
from moco.views.photometric_cpu import finish

LAYOUTS = [torch.contiguous_format, torch.channels_last]
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def parameters(n: int) -> Parameters:
    """Every order of the jitters, with and without all else."""
    generator = torch.Generator().manual_seed(n)
    orders = torch.tensor(list(itertools.permutations(range(4))))[torch.arange(n) % 24]
    jitter = torch.rand(n, 4, generator=generator) * 0.8 + torch.tensor([0.6, 0.6, 0.6, -0.4])
    jitter[torch.rand(n, 4, generator=generator) < 0.2] = 1.0
    some = torch.rand(n, 2, generator=generator) < 0.3
    sigma = torch.linspace(0, 2, n) * (torch.arange(n) % 3 > 0)
    no = torch.zeros(n, dtype=torch.bool)
    return Parameters(torch.zeros(n, 4, dtype=torch.int64), no, jitter, orders, some[:, 0], sigma, some[:, 1])


def by_operations(crops: torch.Tensor, drawn: Parameters, views: Views) -> torch.Tensor:
    out = torch.empty(crops.shape)
    views._finish_in_portions(crops, drawn, out)
    return out


@pytest.mark.parametrize("recipe", ["v1", "v2", "v3"])  # grey first, last; with all else
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 7, 16, 33])
def test_views_are_those_of_the_operations(recipe, layout, size):
    crops = torch.randint(0, 256, (48, 3, size, size), dtype=torch.uint8).contiguous(memory_format=layout)
    drawn, views = parameters(48), Views(recipe, size, 0)
    expected = by_operations(crops, drawn, views)
    pretext = views.pretexts[0]
    for dtype, tolerance in ((torch.float32, 3e-5), (torch.bfloat16, 2**-7)):
        out = torch.full(crops.shape, torch.nan, dtype=dtype).contiguous(memory_format=layout)
        finish(crops, drawn, pretext.grey_first, pretext.normalisation, out)
        torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


def test_bfloat16_is_rounded_as_pytorch_rounds():
    crops, drawn = torch.randint(0, 256, (24, 3, 9, 9), dtype=torch.uint8), parameters(24)
    floats, halves = torch.empty(crops.shape), torch.empty(crops.shape, dtype=torch.bfloat16)
    finish(crops, drawn, False, PRETEXTS["v2"][0].normalisation, floats)
    finish(crops, drawn, False, PRETEXTS["v2"][0].normalisation, halves)
    assert torch.equal(halves, floats.bfloat16())


@pytest.mark.parametrize("size", [8, 160])
def test_a_view_does_not_depend_on_its_batch_or_the_threads(size):
    crops, drawn = torch.randint(0, 256, (10, 3, size, size), dtype=torch.uint8), parameters(10)
    made, threads = [], torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            made.append(torch.empty(crops.shape))
            finish(crops, drawn, True, PLAIN, made[-1])
    finally:
        torch.set_num_threads(threads)
    alone = torch.empty(1, *crops.shape[1:])
    finish(crops[4:5], drawn.take(slice(4, 5)), True, PLAIN, alone)
    assert torch.equal(made[0], made[1])
    assert torch.equal(alone[0], made[0][4])


@pytest.mark.parametrize("kind", [Views, CentreCrop])
def test_without_the_kernels_views_are_the_same(monkeypatch, kind):
    images = torch.randint(0, 256, (12, 3, 24, 30), dtype=torch.uint8)
    views = Views("v3", 16, 0) if kind is Views else CentreCrop("v3", 16)
    compiled = views(images, torch.arange(12), 0)
    for module in ("moco.views.views", "moco.views.operations"):
        monkeypatch.setattr(f"{module}.kernels", lambda name: None)
    for ours, expected in zip(compiled, views(images, torch.arange(12), 0), strict=True):
        torch.testing.assert_close(ours, expected, atol=3e-5, rtol=3e-5)


def test_no_views():
    none = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    out = torch.empty(0, 3, 8, 8)
    finish(none, parameters(0), False, PLAIN, out)
