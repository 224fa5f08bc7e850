"""Views: pure functions of (seed, epoch, image, view), made of what torchvision would make them of."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from moco.errors import UserError
from moco.views import PRETEXTS, CentreCrop, Pretext, Views, draw_parameters, get_pretext

IMAGES = torch.randint(0, 256, (40, 3, 20, 26), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.arange(40)


def draw(recipe, n, height, width, seed=0, epoch=0, view=0):
    sides = [torch.full((n,), side) for side in (height, width)]
    return draw_parameters(get_pretext(recipe), seed, epoch, torch.arange(n), view, *sides)


@pytest.mark.parametrize("recipe", PRETEXTS)
@given(chosen=st.lists(st.integers(0, 39), min_size=1, max_size=30), epoch=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_views_do_not_depend_on_the_batch(recipe, chosen, epoch):
    views, index = Views(recipe, size=16, seed=3), torch.tensor(chosen)
    together = views(IMAGES[index], index, epoch)
    whole = views(IMAGES, NUMBERS, epoch)
    for ours, all_of_them in zip(together, whole, strict=True):
        torch.testing.assert_close(ours, all_of_them[index], rtol=0, atol=2e-5)


@given(
    chosen=st.lists(st.integers(0, 2**40), min_size=1, max_size=20), view=st.integers(0, 5), epoch=st.integers(0, 9999)
)
@settings(max_examples=30, deadline=None)
def test_parameters_do_not_depend_on_the_batch(chosen, view, epoch):
    index = torch.tensor(chosen)
    sides = torch.full_like(index, 50), torch.full_like(index, 60)
    together = draw_parameters(PRETEXTS["v2"], 1, epoch, index, view, *sides)
    for i in range(len(chosen)):
        one = slice(i, i + 1)
        alone = draw_parameters(PRETEXTS["v2"], 1, epoch, index[one], view, *(side[one] for side in sides))
        assert all(torch.equal(a, b) for a, b in zip(together.chunk(one), alone, strict=True))


def test_views_differ_over_epoch_view_and_seed():
    def made(seed, epoch):
        return Views("v2", size=16, seed=seed, count=3)(IMAGES, NUMBERS, epoch)

    drawn = [*made(0, 0), *made(0, 1), *made(1, 0)]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert ((one - other).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean() > 0.95
    assert all(torch.equal(a, b) for a, b in zip(made(0, 1), drawn[3:6], strict=True))


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

    def normal(x):
        mean, std = PRETEXTS[recipe].normalisation
        return F.normalize(x, list(mean), list(std))

    steps = {
        "v1": (crop, grey, jitter, flip, normal),
        "v2": (crop, jitter, grey, blur, flip, normal),
        "cifar": (crop, jitter, grey, flip, normal),
        "shapes": (crop, jitter, grey, flip, normal),
    }
    image = image.float() / 255
    for step in steps[recipe]:
        image = step(image)
    return image


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("recipe", PRETEXTS)
def test_recipes_are_torchvisions_operations(recipe, channels_last, size):
    views = Views(recipe, size=size, seed=5, channels_last=channels_last)
    for view, ours in enumerate(views(IMAGES, NUMBERS, 2)):
        own = draw(recipe, 40, 20, 26, seed=5, epoch=2, view=view)
        theirs = torch.stack([by_hand(recipe, IMAGES[i], own.chunk(slice(i, i + 1)), size) for i in range(40)])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert ours.dtype == torch.float32
        assert ours.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


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


def test_other_parameters_are_distributed_as_the_recipes_say():
    n = 20_000
    v1, v2, cifar = (draw(recipe, n, 32, 32, seed=1) for recipe in ("v1", "v2", "cifar"))
    # Four standard deviations of a share of n is at most 4 * 0.5 / sqrt(n) = 0.014.
    for own in (v1, v2, cifar):
        assert abs(own.flip.float().mean() - 0.5) < 0.015
        assert abs(own.grey.float().mean() - 0.2) < 0.015
        orders = torch.unique(own.order, dim=0, return_counts=True)
        assert len(orders[0]) == 24
        assert orders[0].sort(dim=1).values.eq(torch.arange(4)).all()
        assert (orders[1] / n - 1 / 24).abs().max() < 0.006
    for own, probability, hue in ((v1, 1.0, 0.4), (v2, 0.8, 0.1), (cifar, 0.8, 0.1)):
        jittered = (own.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(dim=1)
        assert abs(jittered.float().mean() - probability) < 0.015
        ranges = [(0.6, 1.4)] * 3 + [(-hue, hue)]
        for values, (low, high) in zip(own.jitter[jittered].unbind(1), ranges, strict=True):
            assert values.min() >= low - 1e-6
            assert values.max() <= high + 1e-6
            assert ks(values, torch.linspace(low, high, 20_001)) < 1
    assert not v1.sigma.any()
    assert not cifar.sigma.any()
    blurred = v2.sigma[v2.sigma > 0]
    assert abs(len(blurred) / n - 0.5) < 0.015
    assert ks(blurred, torch.linspace(0.1, 2.0, 20_001)) < 1


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
    own = draw_parameters(PRETEXTS["v1"], seed, 0, torch.arange(len(sizes)), 0, height, width)
    top, left, h, w = own.box.unbind(1)
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
    (view,) = Views(plain, size=20, seed=0, count=1)(IMAGES[..., :20], NUMBERS, 0)
    mean, std = plain.normalisation
    expected = F.normalize(IMAGES[..., :20].float() / 255, list(mean), list(std))
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_centre_crop_takes_an_image_of_the_size_whole():
    images, normalisation = IMAGES[:, :, :, :20], PRETEXTS["cifar"].normalisation
    (view,) = CentreCrop("cifar", size=20)(images, NUMBERS, 0)
    expected = F.normalize(images.float() / 255, *(list(part) for part in normalisation))
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(20, 26), (50, 31), (40, 40)])
def test_centre_crop_takes_the_central_224_of_256_parts(height, width):
    images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
    (view,) = CentreCrop("v1", size=16)(images, torch.arange(3), 7)
    side = round(min(height, width) * 224 / 256)
    box = ((height - side) // 2, (width - side) // 2, side, side)
    crop = F.resized_crop(images.float() / 255, *box, [16, 16], InterpolationMode.BILINEAR, antialias=True)
    expected = F.normalize(crop, *(list(part) for part in PRETEXTS["v1"].normalisation))
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-4)
    assert torch.equal(view, CentreCrop("v1", size=16)(images, torch.arange(3) + 9, 0)[0])


def test_unknown_recipe():
    with pytest.raises(UserError, match=r"no views named 'v3'.*v1, v2, cifar"):
        Views("v3", size=16, seed=0)
