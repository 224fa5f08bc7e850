"""The GPU's kernel of colours gives what the operations give one by one, which are held to torchvision's."""

from dataclasses import replace

import pytest
import torch

from moco.views import Views
from moco.views.operations import crop_and_resize
from moco.views.recipes import PRETEXTS
from tests.kernels import DEVICE, kernels

gpu = kernels("moco.views.photometric_gpu")


@pytest.mark.parametrize(("recipe", "size"), [("cifar", 32), ("v1", 20), ("v2", 40)])  # 40: in two pieces
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_colours_are_those_of_the_operations(recipe, size, layout):
    pretexts = tuple(replace(pretext, blur_probability=0.0) for pretext in PRETEXTS[recipe])
    views, index = Views(pretexts, size, seed=0), torch.arange(12)
    images = torch.randint(0, 256, (12, 3, 48, 48), dtype=torch.uint8)
    parameters = views.parameters(index, 3, *(torch.full_like(index, 48),) * 2)
    crops = crop_and_resize(images, parameters.box, parameters.flip, size)
    expected = torch.cat(views.photometric(crops, parameters))
    out = torch.empty(crops.shape, device=DEVICE).to(memory_format=layout)
    normalisation = pretexts[0].normalisation
    gpu.colours(crops.to(DEVICE, memory_format=layout), parameters, pretexts[0].grey_first, normalisation, out)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=2e-5)


def test_what_nothing_is_done_to_stays():
    crops = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, device=DEVICE)
    views, index = Views(PRETEXTS["cifar"][:1], 8, seed=0), torch.arange(3)
    parameters = views.parameters(index, 0, *(torch.full_like(index, 8),) * 2)
    jitter, no = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(3, 4), torch.zeros(3, dtype=torch.bool)
    out = torch.empty(crops.shape, device=DEVICE)
    gpu.colours(crops, parameters._replace(jitter=jitter, grey=no), False, None, out)
    torch.testing.assert_close(out, crops / 255)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("recipe", ["cifar", "v2", "v3"])
@pytest.mark.parametrize("size", [16, 32])
def test_views_drawn_on_a_gpu_are_those_of_a_cpu(recipe, size):
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    views, index = Views(recipe, size, seed=1), torch.arange(256)
    epoch = torch.full_like(index, 2)
    for mine, expected in zip(views(images.to(DEVICE), index, epoch), views(images, index, epoch), strict=True):
        differs = (mine.cpu() - expected).abs().amax(dim=(1, 2, 3)) > 1e-3
        assert differs.float().mean() < 0.01  # of a crop on the edge of rounding
