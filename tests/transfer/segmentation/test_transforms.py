import numpy as np
import pytest
import torch
from PIL import Image

from moco.transfer.segmentation.transforms import augment, draw, resize_labels

ONE = 1 / 3
"""The random number that scales by 1."""


def own_red(height, width, block=1):
    """A picture of blocks at random, and its red channel as labels."""
    values = torch.randint(0, 20, (-(-height // block), -(-width // block)), generator=torch.Generator().manual_seed(0))
    labels = values.repeat_interleave(block, 0).repeat_interleave(block, 1)[:height, :width].byte()
    return torch.stack([labels, 255 - labels, labels // 2]), labels


@pytest.mark.parametrize(("height", "width"), [(40, 60), (20, 90), (70, 25), (10, 12), (32, 32)])
@pytest.mark.parametrize("mirror", [0.2, 0.7])
@pytest.mark.parametrize(("down", "right"), [(0.0, 0.99), (0.5, 0.3), (0.99999994, 0.0)])
def test_at_scale_1_every_pixel_keeps_its_label(height, width, mirror, down, right):
    image, labels = own_red(height, width)
    cropped, found = augment(image, labels, torch.tensor([ONE, down, right, mirror]), 32)
    assert cropped.shape == (3, 32, 32)
    padded = found == 255
    assert int((~padded).sum()) == min(height, 32) * min(width, 32)
    assert torch.equal(cropped[0][~padded], found[~padded])
    assert torch.equal(cropped[1][~padded], 255 - found[~padded])
    assert cropped.permute(1, 2, 0)[padded].unique(dim=0).tolist() in ([], [[124, 116, 104]])
    if height < 32:
        assert padded[height:].all()
    if width < 32:
        assert padded.flip(1)[:, width:].all() if mirror < 0.5 else padded[:, width:].all()
    top, left = (int(share * (max(side - 32, 0) + 1)) for share, side in ((down, height), (right, width)))
    expected = labels[top : top + 32, left : left + 32]
    rows = found.flip(1) if mirror < 0.5 else found
    assert torch.equal(rows[: min(height, 32), : min(width, 32)], expected)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.28, 0.6, 0.9999])
def test_at_other_scales_image_and_labels_stay_aligned(share):
    """On a ramp the two differ by rounding alone: a shift by half a pixel would show in the mean."""
    ramp = (torch.arange(80)[None] + torch.arange(60)[:, None] * 1).byte()
    cropped, found = augment(ramp.expand(3, -1, -1), ramp, torch.tensor([share, 0.4, 0.6, 0.1]), 48)
    kept = found != 255
    difference = (cropped[0].int() - found.int())[kept].float()
    assert difference.abs().max() <= 2
    assert difference.mean().abs() < 0.35


def test_scales_are_half_to_double():
    image, labels = own_red(30, 40)
    sizes = []
    for share in (0.0, ONE, 0.99999994):
        found = augment(image, labels, torch.tensor([share, 0, 0, 0.9]), 100)[1] != 255
        sizes.append((int(found[:, 0].sum()), int(found[0].sum())))
    assert sizes == [(15, 20), (30, 40), (60, 80)]


@pytest.mark.parametrize("new", [(31, 44), (90, 61), (45, 200)])
def test_labels_are_pillow_s_nearest_and_no_value_is_new(new):
    labels = own_red(45, 61)[1] * 12
    expected = Image.fromarray(labels.numpy()).resize(new[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(resize_labels(labels, *new).numpy(), np.array(expected))
    assert set(resize_labels(labels, *new).unique().tolist()) <= set(labels.unique().tolist())


def test_random_numbers_are_a_function_of_seed_epoch_and_image():
    index = torch.arange(1000)
    numbers = draw(3, 5, index)
    assert torch.equal(draw(3, 5, index[700:720]), numbers[700:720])
    for other in (draw(4, 5, index), draw(3, 6, index)):
        assert (other == numbers).float().mean() < 0.01
    assert (numbers.mean(0) - 0.5).abs().max() < 0.05
    assert (torch.corrcoef(numbers.T) - torch.eye(4)).abs().max() < 0.1
