"""Copies are alike by their pixels, however they were changed; other images are not."""

import torch
import torch.nn.functional as F

from moco.evaluation.pixel_correlation import SHIFT, THUMB, correlations, thumb


def grey(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth images (n, THUMB, THUMB), values in 40..160."""
    noise = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = F.interpolate(noise, (THUMB, THUMB), mode="bilinear")[:, 0]
    return (40 + 120 * images).round().to(torch.uint8)


def test_pixels_are_alike_whatever_brightness_contrast_shift_and_mirroring():
    images = grey(6)
    changed = [
        images,
        (images.float() * 0.8 + 20).round().to(torch.uint8),
        images.roll((SHIFT, -1), dims=(1, 2)),
        images.flip(2),
    ]
    for other in changed:
        assert correlations(images, other).min() > 0.95
        assert correlations(other, images).min() > 0.95
    assert correlations(images, images.roll(1, 0)).max() < 0.8
    assert correlations(images, images.roll(8, dims=2)).max() < 0.9


def test_light_above_and_dark_below_is_no_likeness():
    """As in all pictures of ships at sea."""
    sky = torch.linspace(0, 120, THUMB).flip(0)[:, None]
    images = (sky + (grey(6).float() - 40) * 0.5).round().to(torch.uint8)
    plain = images.flatten(1).float()
    plain = F.normalize(plain - plain.mean(dim=1, keepdim=True), dim=1)
    assert (plain * plain.roll(1, 0)).sum(dim=1).min() > 0.85
    assert correlations(images, images.roll(1, 0)).max() < 0.8


def test_images_of_one_colour():
    white, other = torch.full((1, THUMB, THUMB), 255, dtype=torch.uint8), grey(1)
    assert correlations(white, white).tolist() == [1]
    assert correlations(white, white // 2).tolist() == [0]
    assert correlations(white, other).tolist() == [0]


def test_a_thumb_is_the_luma_of_any_size():
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    image[1] = 100
    assert thumb(image).unique().tolist() == [59]
    assert thumb(image).shape == (THUMB, THUMB)
