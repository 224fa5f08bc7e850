"""`shapes`: pure functions of (seed, number), with true masks and boxes, and nothing but the outline to learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moco.data.shapes import CLASSES, draw


@pytest.mark.parametrize("size", [8, 32, 65])
def test_shapes_types_and_sizes(size):
    drawing = draw(torch.arange(20), size)
    assert drawing.images.shape == (20, 3, size, size)
    assert drawing.images.dtype == torch.uint8
    assert drawing.labels.shape == (20,)
    assert drawing.labels.dtype == torch.int64
    assert drawing.masks.shape == (20, size, size)
    assert drawing.masks.dtype == torch.bool
    assert drawing.boxes.shape == (20, 4)
    assert drawing.boxes.dtype == torch.float32
    # No two alike, and none of one colour.
    assert len({tuple(image.flatten().tolist()) for image in drawing.images}) == 20
    assert drawing.images.float().flatten(1).std(dim=1).min() > 5


@pytest.mark.xfail(raises=RuntimeError, strict=True, reason="philox.uniform cannot reshape an empty batch")
def test_no_images():
    drawing = draw(torch.arange(0), 16)
    assert drawing.images.shape == (0, 3, 16, 16)
    assert drawing.boxes.shape == (0, 4)


@given(
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=12),
    size=st.sampled_from([8, 17, 32]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=12, deadline=None)
def test_an_image_does_not_depend_on_the_batch(index, size, seed):
    together = draw(torch.tensor(index), size, seed)
    for i, number in enumerate(index):
        alone = draw(torch.tensor([number]), size, seed)
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))


def test_drawing_in_chunks_changes_nothing():
    whole = draw(torch.arange(400), 32)
    parts = [draw(part, 32) for part in torch.arange(400).split(73)]
    for all_of_them, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(all_of_them, torch.cat(pieces))


def test_it_is_the_same_data_set_every_time():
    torch.manual_seed(0)
    first = draw(torch.arange(50))
    torch.manual_seed(1)
    again = draw(torch.arange(50))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_seed_is_another_data_set():
    first, second = draw(torch.arange(200), seed=0), draw(torch.arange(200), seed=1)
    assert (first.images != second.images).flatten(1).float().mean(dim=1).min() > 0.5
    assert 0.8 < (first.labels != second.labels).float().mean() < 1


def test_labels_are_the_same_at_every_size():
    small, large = draw(torch.arange(100), 8), draw(torch.arange(100), 65)
    assert torch.equal(small.labels, large.labels)


def test_labels_are_evenly_spread():
    assert len(CLASSES) == len(set(CLASSES)) == 10
    counts = torch.bincount(draw(torch.arange(10_000), 8).labels, minlength=10)
    assert len(counts) == 10
    assert (counts - 1000).abs().max() < 120  # four standard deviations


@pytest.mark.parametrize("size", [8, 32, 65])
def test_boxes_are_tight_around_masks(size):
    drawing = draw(torch.arange(300), size)
    for mask, box in zip(drawing.masks, drawing.boxes.int().tolist(), strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_the_mask_is_the_object():
    """It has a fair share of the image, and at its edge the luma changes more than elsewhere."""
    drawing = draw(torch.arange(500), 32)
    share = drawing.masks.float().mean(dim=(1, 2))
    assert share.min() > 0.03
    assert share.max() < 0.6
    luma = (drawing.images.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1)
    step = (luma[:, :, 1:] - luma[:, :, :-1]).abs()
    edge = drawing.masks[:, :, 1:] != drawing.masks[:, :, :-1]
    assert step[edge].mean() > 2 * step[~edge].mean()


def nearest_centroid(features, labels):
    """The share of the second half of the images that the nearest mean of a class, of the first half, names."""
    half = len(features) // 2
    centroids = torch.stack([features[:half][labels[:half] == k].mean(dim=0) for k in range(10)])
    return (torch.cdist(features[half:], centroids).argmin(dim=1) == labels[half:]).float().mean()


def test_colour_tells_nothing_of_the_class():
    drawing = draw(torch.arange(6000), 16)
    pixels = drawing.images.float().flatten(2)
    assert nearest_centroid(pixels.mean(dim=2), drawing.labels) < 0.13
    assert nearest_centroid(torch.cat((pixels.mean(dim=2), pixels.std(dim=2)), dim=1), drawing.labels) < 0.2


@pytest.mark.parametrize(
    ("index", "size"),
    [
        (torch.arange(3), 7),
        (torch.arange(3), 0),
        (torch.tensor(3), 32),
        (torch.zeros(2, 2, dtype=torch.long), 32),
        (torch.tensor([1.0]), 32),
        (torch.tensor([True]), 32),
        (torch.tensor([0, -1]), 32),
    ],
)
def test_what_cannot_be_drawn(index, size):
    with pytest.raises(ValueError, match=r"index must|size must"):
        draw(index, size)
