"""Each batched operation beside torchvision's, image by image on the same parameters."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from moco.views import operations
from moco.views.operations import (
    SOLARISE_FROM,
    _resize_in_integers,
    adjust_hue,
    colour_jitter,
    crop_and_resize,
    gaussian_blur,
    grey_scale,
    normalise,
    solarise,
    to_grey,
)

SIZES = [(32, 32), (17, 40), (1, 1), (64, 23)]
TOLERANCE = 1e-5


def pictures(n, height, width, seed=0):
    """Noise, a grey one, a black one, a white one, and a few pure colours."""
    images = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))
    if n > 4:
        images[0] = images[0, :1]
        images[1], images[2] = 0, 1
        images[3] = images[3].round()
    return images


def channels_last(images):
    return images.to(memory_format=torch.channels_last)


def odd_strides(images):
    """The same values, as a view into something larger with every dimension in another place."""
    n, channels, height, width = images.shape
    room = torch.full((width + 1, n, 2 * height, channels + 2), torch.nan)
    view = room[1:, :, ::2, 1:-1].permute(1, 3, 2, 0)
    view.copy_(images)
    return view


LAYOUTS = [torch.clone, channels_last, odd_strides]


def assert_same(ours, theirs, tolerance=TOLERANCE):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def one_by_one(function, images, *parameters):
    return torch.stack(
        [function(image, *own) for image, *own in zip(images, *(p.tolist() for p in parameters), strict=True)]
    )


def in_bytes(n, height, width, seed=0):
    return (pictures(n, height, width, seed) * 255).round().to(torch.uint8)


def torchvisions(images, box, flip, size):
    def one(image, box, flipped):
        crop = F.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
        return F.horizontal_flip(crop) if flipped else crop

    rows = zip(box.tolist(), flip.tolist(), strict=True)
    return torch.stack([one(images[i % len(images)], *row) for i, row in enumerate(rows)])


def boxes(n, height, width):
    generator = torch.Generator().manual_seed(1)
    h, w = (torch.randint(1, side + 1, (n,), generator=generator) for side in (height, width))
    h[0], w[0], h[1], w[1] = height, width, 1, 1
    top = (torch.rand(n, generator=generator) * (height - h + 1)).long()
    left = (torch.rand(n, generator=generator) * (width - w + 1)).long()
    return torch.stack((top, left, h, w), 1), torch.arange(n) % 2 == 1


@pytest.mark.parametrize("function", [crop_and_resize, _resize_in_integers])
@pytest.mark.parametrize("layout", [torch.clone, channels_last])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (40, 31, 20), (48, 31, 12), (20, 70, 24), (9, 9, 40), (100, 64, 7)]
)
def test_crop_and_resize_is_torchvisions(height, width, size, layout, function):
    images, (box, flip) = in_bytes(8, height, width), boxes(16, height, width)
    ours = function(layout(images), box, flip, size)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, torchvisions(images, box, flip, size))


@given(
    sides=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3),
    size=st.integers(2, 70),  # of 1, an assertion of PyTorch's own kernel fails (2.15)
    views=st.integers(1, 2),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_an_accelerator_gives_the_bytes_of_a_cpu(sides, size, views, data):
    images = [in_bytes(5, *side, seed=i)[data.draw(st.integers(0, 4))] for i, side in enumerate(sides)]
    box = []
    for height, width in sides * views:
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        box.append((data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w)), h, w))
    flip = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(box), max_size=len(box))))
    expected = torchvisions(images, torch.tensor(box), flip, size)
    assert torch.equal(crop_and_resize(images, torch.tensor(box), flip, size), expected)
    assert torch.equal(_resize_in_integers(images, torch.tensor(box), flip, size), expected)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("size", [7, 32, 40])
def test_this_accelerator_gives_the_bytes_of_a_cpu(size):
    device = torch.accelerator.current_accelerator()
    images, (box, flip) = in_bytes(8, 70, 50), boxes(16, 70, 50)
    expected = torchvisions(images, box, flip, size)
    assert torch.equal(crop_and_resize(images.to(device), box, flip, size).cpu(), expected)
    assert torch.equal(crop_and_resize([image.to(device) for image in images], box, flip, size).cpu(), expected)


def test_an_accelerator_resizes_in_portions(monkeypatch):
    images, (box, flip) = in_bytes(3, 40, 30), boxes(9, 40, 30)
    whole = _resize_in_integers(images, box, flip, 16)
    monkeypatch.setattr(operations, "_RESIZED_TOGETHER", 40 * 16 * 2)
    assert torch.equal(_resize_in_integers(images, box, flip, 16), whole)


def test_whole_image_at_its_size_is_itself():
    images = in_bytes(5, 24, 24)
    box, flip = torch.tensor([0, 0, 24, 24]).expand(5, 4), torch.zeros(5, dtype=torch.bool)
    for function in (crop_and_resize, _resize_in_integers):
        assert torch.equal(function(images, box, flip, 24), images)
        assert torch.equal(function(images, box, ~flip, 24), images.flip(3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    ("place", "values", "theirs"),
    [
        (0, [0.0, 0.6, 1.4, 3.0], F.adjust_brightness),
        (1, [0.0, 0.6, 1.4, 3.0], F.adjust_contrast),
        (2, [0.0, 0.6, 1.4, 3.0], F.adjust_saturation),
        (3, [-0.5, -0.1, 0.07, 0.5], F.adjust_hue),
    ],
)
def test_each_jitter(height, width, place, values, theirs, layout):
    images = pictures(8, height, width)
    jitter = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(8, 1)
    jitter[:, place] = torch.tensor(values * 2)
    expected = one_by_one(theirs, images, jitter[:, place])
    assert_same(colour_jitter(layout(images), jitter, torch.arange(4).expand(8, 4)), expected)


def test_adjust_hue_alone():
    images, shift = pictures(9, 16, 16), torch.linspace(-0.5, 0.5, 9)
    assert_same(adjust_hue(images.clone(), shift), one_by_one(F.adjust_hue, images, shift))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_colour_jitter_in_every_order(layout):
    orders = torch.tensor(list(itertools.permutations(range(4))))
    generator = torch.Generator().manual_seed(2)
    jitter = torch.rand(24, 4, generator=generator) * 0.8 + torch.tensor([0.6, 0.6, 0.6, -0.4])
    images = pictures(24, 13, 18)
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

    def theirs(image, factors, order):
        for which in order:
            image = operations[which](image, factors[which])
        return image

    given = layout(images)
    ours = colour_jitter(given, jitter, orders)
    assert ours is given
    assert_same(ours, one_by_one(theirs, images, jitter, orders))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grey(height, width, layout):
    images = pictures(6, height, width)
    assert_same(to_grey(layout(images)), F.rgb_to_grayscale(images), 1e-6)
    grey = torch.tensor([True, False] * 3)
    expected = torch.where(grey[:, None, None, None], F.rgb_to_grayscale(images, 3), images)
    ours = grey_scale(layout(images), grey)
    assert_same(ours, expected, 1e-6)
    assert torch.equal(ours[1::2], images[1::2])
    assert_same(grey_scale(layout(images), torch.ones(6, dtype=torch.bool)), F.rgb_to_grayscale(images, 3), 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 40), (12, 12), (8, 30), (2, 5), (1, 1)])
def test_gaussian_blur(height, width, layout):
    images, sigma = pictures(6, height, width), torch.tensor([0.1, 0.0, 0.5, 1.3, 2.0, 1.7])
    kernel = [min(23, 2 * side - 1) for side in (width, height)]

    def theirs(image, sigma):
        return F.gaussian_blur(image, kernel, [sigma, sigma]) if sigma else image

    ours = gaussian_blur(layout(images), sigma)
    assert_same(ours, one_by_one(theirs, images, sigma))
    assert torch.equal(ours[1], images[1])


@pytest.mark.parametrize(("height", "width"), [(40, 50), (5, 7), (2, 30)])
def test_an_image_alone_is_blurred_as_among_others(height, width):
    images, sigma = torch.rand(6, 3, height, width), torch.tensor([0.1, 0.4, 0.9, 1.3, 2.0, 0.0])
    together = gaussian_blur(images.clone(), sigma)
    alone = torch.cat([gaussian_blur(images[i : i + 1].clone(), sigma[i : i + 1]) for i in range(6)])
    assert torch.equal(alone, together)
    assert torch.equal(alone[5], images[5])


@pytest.mark.parametrize(("height", "width"), [(40, 50), (5, 7), (2, 30)])
def test_an_accelerator_blurs_as_a_cpu(monkeypatch, height, width):
    images, sigma = torch.rand(5, 3, height, width), torch.tensor([0.1, 0.4, 0.9, 1.3, 2.0])
    shifted = gaussian_blur(images.clone(), sigma)
    monkeypatch.setattr(operations, "_sum_shifted", operations._multiply_matrices)
    assert_same(gaussian_blur(images.clone(), sigma), shifted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_solarise(height, width, layout):
    images = pictures(6, height, width)
    chosen = torch.tensor([True, False] * 3)
    expected = torch.where(chosen[:, None, None, None], F.solarize(images, SOLARISE_FROM), images)
    assert_same(solarise(layout(images), chosen), expected, 1e-6)


def test_solarise_of_bytes_is_pillows():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    pillow = ImageOps.solarize(Image.fromarray(values[0].permute(1, 2, 0).numpy()))
    ours = solarise(values.float() / 255, torch.tensor([True])) * 255
    assert torch.equal(ours[0].round().byte().permute(1, 2, 0), torch.from_numpy(np.array(pillow)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_normalise(layout, dtype):
    images, mean, std = pictures(5, 9, 14), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = torch.empty(images.shape, dtype=dtype).to(memory_format=torch.channels_last)
    normalise(layout(images), mean, std, out)
    expected = F.normalize(images, list(mean), list(std))
    assert_same(out, expected.to(dtype), TOLERANCE if dtype == torch.float32 else 0.016)


def test_identity_changes_nothing():
    images = pictures(7, 21, 21)
    identity = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(7, 4)
    no, orders = torch.zeros(7, dtype=torch.bool), torch.tensor(list(itertools.permutations(range(4)))[:7])
    assert torch.equal(colour_jitter(images.clone(), identity, orders), images)
    assert torch.equal(grey_scale(images.clone(), no), images)
    assert torch.equal(gaussian_blur(images.clone(), torch.zeros(7)), images)
    assert torch.equal(solarise(images.clone(), no), images)
    assert_same(adjust_hue(images.clone(), torch.zeros(7)), images)


def test_values_stay_between_0_and_1():
    images, jitter = pictures(24, 10, 10), torch.tensor([2.5, 3.0, 4.0, 0.4]).expand(24, 4)
    colour_jitter(images, jitter, torch.tensor(list(itertools.permutations(range(4)))))
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6
