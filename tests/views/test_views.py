"""Views: pure functions of (seed, epoch, image, view), made of what torchvision would make them of."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import ColorJitter, GaussianBlur, InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from moco.runtime.errors import UserError
from moco.views import PRETEXTS, CentreCrop, Pretext, Views, draw_parameters, get_pretext

IMAGES = torch.randint(0, 256, (40, 3, 20, 26), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.arange(40)


def draw(recipe, n, height, width, seed=0, epoch=0, view=0):
    sides = [torch.full((n,), side) for side in (height, width)]
    both = draw_parameters(get_pretext(recipe), seed, epoch, torch.arange(n), *sides)
    return both.take(slice(view * n, (view + 1) * n))


@pytest.mark.parametrize("recipe", PRETEXTS)
@given(chosen=st.lists(st.integers(0, 39), min_size=1, max_size=30), epoch=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_views_do_not_depend_on_the_batch(recipe, chosen, epoch):
    views, index = Views(recipe, size=16, seed=3), torch.tensor(chosen)
    together = views(IMAGES[index], index, epoch)
    whole = views(IMAGES, NUMBERS, epoch)
    for ours, all_of_them in zip(together, whole, strict=True):
        assert torch.equal(ours, all_of_them[index])


@given(chosen=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 9999)), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_parameters_do_not_depend_on_the_batch(chosen):
    index, epoch = torch.tensor(chosen).unbind(1)
    sides = torch.full_like(index, 50), torch.full_like(index, 60)
    n, together = len(chosen), draw_parameters(PRETEXTS["v3"], 1, epoch, index, *sides)
    for i, (image, own_epoch) in enumerate(chosen):
        sides = torch.tensor([50]), torch.tensor([60])
        alone = draw_parameters(PRETEXTS["v3"], 1, own_epoch, torch.tensor([image]), *sides)
        both = together.take(torch.tensor([i, n + i]))
        assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))


def test_a_batch_may_span_epochs():
    epochs = torch.arange(40) % 3
    spanning = Views("v2", size=16, seed=0)(IMAGES, NUMBERS, epochs)
    for epoch in range(3):
        of_one = Views("v2", size=16, seed=0)(IMAGES, NUMBERS, epoch)
        for ours, expected in zip(spanning, of_one, strict=True):
            assert torch.equal(ours[epochs == epoch], expected[epochs == epoch])


def test_views_differ_over_epoch_view_and_seed():
    def made(seed, epoch):
        return Views(get_pretext("v2") * 2, size=16, seed=seed)(IMAGES, NUMBERS, epoch)

    drawn = [*made(0, 0), *made(0, 1), *made(1, 0)]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert ((one - other).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean() > 0.95
    assert all(torch.equal(a, b) for a, b in zip(made(0, 1), drawn[4:8], strict=True))


def test_same_image_under_another_number_gets_another_view():
    same = IMAGES[:1].expand(8, -1, -1, -1)
    first, _ = Views("v1", size=16, seed=0)(same, torch.arange(8), 0)
    assert len({tuple(view.flatten().tolist()) for view in first}) == 8


def by_hand(recipe, image, own, size):
    """One view as torchvision's functions make it, in the order of the released code."""
    (box,), (factors,), (order,) = own.box.tolist(), own.jitter.tolist(), own.order.tolist()
    jitters = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

    def crop(x):
        return F.resized_crop(x, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)

    def grey(x):
        return F.rgb_to_grayscale(x, 3) if own.grey else x

    def jitter(x):
        for which in order:
            x = jitters[which](x, factors[which])
        return x

    def blur(x):
        return F.gaussian_blur(x, [23, 23], [float(own.sigma)] * 2) if own.sigma > 0 else x

    def flip(x):
        return F.horizontal_flip(x) if own.flip else x

    def invert(x):
        return F.solarize(x, 128 / 255) if own.solarise else x

    def normal(x):
        mean, std = PRETEXTS[recipe][0].normalisation
        return F.normalize(x, list(mean), list(std))

    steps = {
        "v1": (crop, grey, jitter, flip, normal),
        "v2": (crop, jitter, grey, blur, flip, normal),
        "v3": (crop, jitter, grey, blur, invert, flip, normal),
        "v3-vit": (crop, jitter, grey, blur, invert, flip, normal),
        "simclr": (crop, jitter, grey, blur, flip, normal),
        "cifar": (crop, jitter, grey, flip, normal),
        "shapes": (crop, jitter, grey, flip, normal),
    }
    for step in steps[recipe]:
        image = step(image).float() / 255 if step is crop else step(image)
    return image


@pytest.mark.parametrize("size", [16, 32, 130])
@pytest.mark.parametrize("recipe", PRETEXTS)
def test_recipes_are_torchvisions_operations(recipe, size):
    both_layouts = [
        (layout, Views(recipe, size=size, seed=5, channels_last=layout is torch.channels_last)(IMAGES, NUMBERS, 2))
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    for view in range(2):
        own = draw(recipe, 40, 20, 26, seed=5, epoch=2, view=view)
        theirs = torch.stack([by_hand(recipe, IMAGES[i], own.take(slice(i, i + 1)), size) for i in range(40)])
        for layout, views in both_layouts:
            ours = views[view]
            # Solarisation jumps: a value within rounding of where it begins may fall on either side, 1/255 apart.
            jumped = own.solarise[:, None, None, None] & ((ours - theirs).abs() < 0.02)
            assert (jumped & ((ours - theirs).abs() > 1e-4)).float().mean() < 0.005
            torch.testing.assert_close(ours.where(~jumped, theirs), theirs, rtol=0, atol=1e-4)
            assert ours.dtype == torch.float32
            assert ours.is_contiguous(memory_format=layout)


def ks(first, second):
    """Two-sample Kolmogorov-Smirnov: how far the distribution functions are apart, in units of its 0.1 % level."""
    first, second = first.sort().values, second.sort().values
    values = torch.cat((first, second))
    shares = [torch.searchsorted(sample, values, right=True) / len(sample) for sample in (first, second)]
    return (shares[0] - shares[1]).abs().max() / (1.95 * math.sqrt(1 / len(first) + 1 / len(second)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (240, 300), (90, 30)])
def test_crops_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    n, image = 4000, torch.empty(3, height, width)
    top, left, h, w = draw("v1", n, height, width).box.unbind(1)
    drawn = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    their_top, their_left, their_h, their_w = torch.tensor(drawn).unbind(1)
    for ours, theirs in ((top, their_top), (left, their_left), (h, their_h), (w, their_w), (h * w, their_h * their_w)):
        assert ks(ours.float(), theirs.float()) < 1


EXPECTED = {
    # jitter strengths, probability of jitter, grey, blur and solarisation, for view 0 and view 1
    "v1": [((0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, 0.0)] * 2,
    "v2": [((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0)] * 2,
    "v3": [((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0.0), ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.1, 0.2)],
    "v3-vit": [((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0.0), ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.1, 0.2)],
    "simclr": [((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.0)] * 2,
    "cifar": [((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0, 0.0)] * 2,
}


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("recipe", EXPECTED)
def test_other_parameters_are_distributed_as_torchvisions(recipe, view):
    strength, jittered, grey, blurred, solarised = EXPECTED[recipe][view]
    n = 6000
    own = draw(recipe, n, 32, 32, seed=1, view=view)
    jitter = (own.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(dim=1)
    happened = (own.flip, jitter, own.grey, own.sigma > 0, own.solarise)
    for probability, chosen in zip((0.5, jittered, grey, blurred, solarised), happened, strict=True):
        deviation = math.sqrt(probability * (1 - probability) / n)
        assert abs(chosen.double().mean() - probability) <= 4 * deviation
    torch.manual_seed(0)
    theirs = ColorJitter(*strength)
    ranges = (theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
    drawn = [ColorJitter.get_params(*ranges) for _ in range(n)]
    for ours, numbers in zip(own.jitter[jitter].unbind(1), zip(*(row[1:] for row in drawn), strict=True), strict=True):
        assert ks(ours, torch.tensor(numbers)) < 1
    their_orders = torch.stack([row[0] for row in drawn])
    for place in range(4):
        both = [torch.bincount(orders[:, place], minlength=4) / n for orders in (own.order, their_orders)]
        assert (both[0] - both[1]).abs().max() < 4 * math.sqrt(2 * 0.25 * 0.75 / n)
    if blurred:
        sigmas = torch.tensor([GaussianBlur.get_params(0.1, 2.0) for _ in range(n)])
        assert ks(own.sigma[own.sigma > 0], sigmas) < 1


def test_parameters_are_independent_of_each_other():
    own = draw("v2", 20_000, 200, 200)
    columns = [*own.box.unbind(1), own.flip, own.grey, own.sigma, own.jitter[:, 0], own.jitter[:, 3], own.order[:, 0]]
    related = torch.corrcoef(torch.stack([column.double() for column in columns])) - torch.eye(len(columns))
    related[:4, :4] = 0  # a large crop has little room
    related[7:9, 7:9] = 0
    assert related.abs().max() < 0.04


@given(
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_boxes_lie_within_the_image(sizes, seed):
    height, width = torch.tensor(sizes).unbind(1)
    own = draw_parameters(PRETEXTS["v1"], seed, 0, torch.arange(len(sizes)), height, width)
    (top, left, h, w), height, width = own.box.unbind(1), height.repeat(2), width.repeat(2)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (7, 64), (1, 30), (97, 11), (2, 300)])
def test_extreme_shapes_fall_back_to_the_centre(height, width):
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.2, 1.0], [3 / 4, 4 / 3])
    assert draw("v1", 5, height, width).box.tolist() == [list(theirs)] * 5


def test_a_recipe_of_ones_own():
    plain = Pretext(area=(1.0, 1.0), log_ratio=(0.0, 0.0), jitter_probability=0, grey_probability=0, flip_probability=0)
    (view,) = Views((plain,), size=20, seed=0)(IMAGES[..., :20], NUMBERS, 0)
    mean, std = plain.normalisation
    expected = F.normalize(IMAGES[..., :20].float() / 255, list(mean), list(std))
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_centre_crop_takes_an_image_of_the_size_whole():
    images, normalisation = IMAGES[:, :, :, :20], PRETEXTS["cifar"][0].normalisation
    (view,) = CentreCrop("cifar", size=20)(images, NUMBERS, 0)
    expected = F.normalize(images.float() / 255, *(list(part) for part in normalisation))
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(20, 26), (50, 31), (40, 40)])
def test_centre_crop_takes_the_central_224_of_256_parts(height, width):
    images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
    (view,) = CentreCrop("v1", size=16)(images, torch.arange(3), 7)
    side = round(min(height, width) * 224 / 256)
    box = ((height - side) // 2, (width - side) // 2, side, side)
    crop = F.resized_crop(images, *box, [16, 16], InterpolationMode.BILINEAR, antialias=True)
    expected = F.normalize(crop.float() / 255, *(list(part) for part in PRETEXTS["v1"][0].normalisation))
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)
    assert torch.equal(view, CentreCrop("v1", size=16)(images, torch.arange(3) + 9, 0)[0])


def test_unknown_recipe():
    with pytest.raises(UserError, match=r"no views named 'v4': did you mean v3\? \(there are v1, v2, v3, v3-vit"):
        Views("v4", size=16, seed=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_views_in_the_precision_of_the_encoder(channels_last):
    exact = Views("v2", 16, seed=0, channels_last=channels_last)(IMAGES, NUMBERS, 0)
    half = Views("v2", 16, seed=0, channels_last=channels_last, dtype=torch.bfloat16)(IMAGES, NUMBERS, 0)
    for ours, expected in zip(half, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, expected.bfloat16())


def test_views_of_crops_are_those_of_whole_images():
    """What workers send: uint8 crops, of the whole image here."""
    plain = replace(PRETEXTS["v3"][0], area=(1.0, 1.0), log_ratio=(0.0, 0.0)), PRETEXTS["v3"][1]
    plain = plain[0], replace(plain[1], area=(1.0, 1.0), log_ratio=(0.0, 0.0))
    square, views = IMAGES[..., :20], Views(plain, size=20, seed=1)
    parameters = views.parameters(NUMBERS, 4, *(torch.full((40,), 20),) * 2)
    crops = torch.where(
        parameters.flip[:, None, None, None], square.repeat(2, 1, 1, 1).flip(3), square.repeat(2, 1, 1, 1)
    )
    for ours, expected in zip(views.photometric(crops, parameters), views(square, NUMBERS, 4), strict=True):
        assert torch.equal(ours, expected)
