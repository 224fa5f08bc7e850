"""The embedded data set: a pure function of (seed, index), with honest masks and boxes, that gives no class away."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from moco.data.sources import shapes
from moco.data.sources.shapes import CLASSES, Drawing, draw

BANK, QUERIES = 2000, 500


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads gain little on so few pixels, and wait long for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def many(one_thread: None) -> Drawing:
    return draw(torch.arange(BANK + QUERIES))


def same(a: Drawing, b: Drawing) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", [8, 32, 65])
def test_shapes_types_and_sizes(size: int) -> None:
    drawing = draw(torch.arange(40), size)
    shapes_and_types = [(tuple(field.shape), field.dtype) for field in drawing]
    assert shapes_and_types == [
        ((40, 3, size, size), torch.uint8),
        ((40,), torch.int64),
        ((40, size, size), torch.bool),
        ((40, 4), torch.float32),
    ]


def test_no_images_at_all() -> None:
    assert [len(part) for part in draw(torch.arange(0))] == [0, 0, 0, 0]


def test_the_same_again_and_another_with_another_seed() -> None:
    index = torch.arange(50)
    first, other = draw(index, seed=3), draw(index, seed=4)
    assert same(first, draw(index, seed=3))
    assert not torch.equal(first.labels, other.labels)
    assert (first.images != other.images).flatten(1).any(1).all()


@settings(max_examples=25, deadline=None)
@given(
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=12),
    size=st.sampled_from([8, 31, 64]),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_an_image_does_not_depend_on_its_batch(index: list[int], size: int, seed: int, data: st.DataObject) -> None:
    whole = draw(torch.tensor(index), size, seed)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(index) - 1), min_size=1, max_size=4)))
    part = draw(torch.tensor(index)[rows], size, seed)
    assert same(part, Drawing(*(field[rows] for field in whole)))


def test_an_image_does_not_depend_on_the_chunks(many: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_CHUNK_CPU", 7 * 32 * 32)
    assert same(draw(torch.arange(100)), Drawing(*(field[:100] for field in many)))


def test_the_scene_is_the_same_at_every_size() -> None:
    small, large = draw(torch.arange(30), 32), draw(torch.arange(30), 128)
    assert torch.equal(small.labels, large.labels)
    assert (small.boxes * 4 - large.boxes).abs().max() <= 8
    reduced = torch.nn.functional.avg_pool2d(large.images.float(), 4)
    assert (small.images - reduced).abs().mean() < 12


def test_every_class_occurs_as_often(many: Drawing) -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 10
    counts = many.labels.bincount(minlength=10).double()
    expected = len(many.labels) / 10
    # The chi-squared of nine degrees of freedom is above 33.7 once in ten thousand.
    assert len(counts) == 10
    assert ((counts - expected) ** 2 / expected).sum() < 33.7


@pytest.mark.parametrize("size", [8, 9, 32, 65, 200])
def test_boxes_are_tight_around_masks(size: int) -> None:
    drawing = draw(torch.arange(20), size)
    for mask, box in zip(drawing.masks, drawing.boxes, strict=True):
        y, x = mask.nonzero().T
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_masks_are_never_empty() -> None:
    for size in (8, 11):
        areas = draw(torch.arange(3000), size).masks.sum((1, 2))
        assert areas.min() > 0
        assert areas.max() < size * size


def test_the_mask_is_what_stands_out(many: Drawing) -> None:
    luma = many.images.float().mean(1) / 255
    inside = (luma * many.masks).sum((1, 2)) / many.masks.sum((1, 2))
    outside = (luma * ~many.masks).sum((1, 2)) / (~many.masks).sum((1, 2))
    assert ((inside - outside).abs() > 0.1).double().mean() > 0.95


def test_most_of_the_object_is_in_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    index = torch.arange(400)
    visible = draw(index, 64).masks.sum((1, 2))
    monkeypatch.setattr(shapes, "OVERHANG", -9.0)  # leaves no room to move: the same objects in the middle
    assert (visible / draw(index, 64).masks.sum((1, 2))).min() > 0.85


def test_outlines_are_told_apart_by_how_much_of_their_box_they_fill() -> None:
    drawing = draw(torch.arange(400), 64)
    width, height = (drawing.boxes[:, 2:] - drawing.boxes[:, :2]).T
    filled = drawing.masks.sum((1, 2)) / (width * height)
    mean = {name: filled[drawing.labels == c].mean() for c, name in enumerate(CLASSES)}
    assert abs(mean["disk"] - torch.pi / 4) < 0.04  # at any rotation
    assert mean["ring"] < mean["disk"] - 0.2
    assert mean["star"] < mean["square"] - 0.1


def test_mean_colour_tells_nothing_about_the_class(many: Drawing) -> None:
    colour = many.images.float().mean((2, 3))
    centroids = torch.stack([colour[:BANK][many.labels[:BANK] == c].mean(0) for c in range(10)])
    predicted = torch.cdist(colour[BANK:], centroids).argmin(1)
    assert (predicted == many.labels[BANK:]).double().mean() < 0.18


def test_raw_pixels_do_badly(many: Drawing) -> None:
    pixels = many.images.flatten(1).float()
    assert knn(pixels / 127.5 - 1, many.labels) < 0.4


def knn(features: Tensor, labels: Tensor, k: int = 50) -> float:
    features = normalize(features, dim=1)
    similar, nearest = (features[BANK:] @ features[:BANK].T).topk(k)
    votes = torch.zeros(QUERIES, 10).scatter_add_(1, labels[nearest], (similar / 0.1).exp())
    return (votes.argmax(1) == labels[BANK:]).double().mean().item()


@pytest.mark.parametrize(
    ("index", "size"),
    [
        (torch.arange(3), 7),
        (torch.arange(3), 0),
        (torch.arange(3.0), 32),
        (torch.tensor([True]), 32),
        (torch.tensor(3), 32),
        (torch.zeros(2, 2, dtype=torch.int64), 32),
        (torch.tensor([4, -1]), 32),
    ],
)
def test_bad_arguments_are_refused(index: Tensor, size: int) -> None:
    with pytest.raises(ValueError, match="must"):
        draw(index, size)
