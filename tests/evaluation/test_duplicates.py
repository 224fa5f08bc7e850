"""Near duplicates: planted ones are found, others are not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moco.data import InMemory
from moco.data.formats.decode import UnreadableImageError
from moco.data.sources.shapes import draw
from moco.evaluation import duplicates
from moco.evaluation.duplicates import (
    Duplicates,
    Pair,
    components,
    confirm,
    copy_threshold,
    find_candidates,
    find_duplicates,
)
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.views import CentreCrop
from tests.evaluation.test_pixel_correlation import grey

DEVICE = choose_device(name="cpu", precision="fp32", channels_last=False)
CPU = torch.device("cpu")
VIEWS = CentreCrop("cifar", 32)


class Small(nn.Module):
    """An 8 x 8 version."""

    def forward(self, images):
        return F.adaptive_avg_pool2d(images, 8).flatten(1)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
@settings(max_examples=60, deadline=None)
def test_components_are_those_of_the_closure(edges):
    near = torch.eye(13, dtype=torch.bool)
    for i, j in edges:
        near[i, j] = near[j, i] = True
    for _ in range(4):
        near = (near.float() @ near.float()) > 0
    touched = sorted({node for edge in edges for node in edge})
    expected = {tuple(near[node].nonzero()[:, 0].tolist()) for node in touched}
    found = components(edges)
    assert {tuple(group) for group in found} == expected
    assert [len(group) for group in found] == sorted((len(group) for group in found), reverse=True)


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_candidates_are_the_pairs_above_the_threshold(index):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(60, 6, generator=generator)
    values[40:] = values[:20] + 0.05 * torch.randn(20, 6, generator=generator)
    test = torch.arange(60) >= 50
    cosines = F.normalize(values, dim=1) @ F.normalize(values, dim=1).T
    expected = [(i, j) for i in range(60) for j in range(i + 1, 60) if cosines[i, j] >= 0.95]
    found = find_candidates(values, test, 0.95, CPU, index)
    assert len(expected) > 15
    assert [(i, j) for i, j, _ in found] == expected
    torch.testing.assert_close(torch.tensor([c for *_, c in found]), torch.stack([cosines[i, j] for i, j in expected]))


def test_a_training_copy_is_not_hidden_by_many_test_copies(monkeypatch):
    monkeypatch.setattr(duplicates, "NEIGHBOURS", 2)
    values = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    values[30:] = values[30]
    values[3] = values[30] + 0.01
    found = find_candidates(values, torch.arange(40) >= 30, 0.999, CPU)
    assert {j for i, j, _ in found if i == 3} == set(range(30, 40))


def test_unreadable_images_confirm_nothing():
    images = grey(3)

    def pixels(place):
        if place == 2:
            raise UnreadableImageError("gone")
        return images[place].expand(3, -1, -1)

    pairs = confirm([(0, 0, 1.0), (0, 1, 0.9), (0, 2, 0.9)], pixels)
    assert pairs[0].correlation == pytest.approx(1)
    assert pairs[2] == Pair(0, 2, 0.9, -1)
    assert confirm([], pixels) == []


def test_of_a_group_a_test_image_is_kept_or_else_the_first():
    edges = [(1, 2), (2, 5), (5, 6), (0, 3), (7, 8), (4, 9)]
    pairs = [Pair(i, j, 0.99, 0.95) for i, j in edges[:-1]] + [Pair(4, 9, 0.99, 0.5)]
    found = Duplicates(10, 5, 0.98, 0.95, pairs)  # the least correlation counts
    assert found.groups == [[1, 2, 5, 6], [0, 3], [7, 8]]
    assert found.dropped == [1, 2, 3, 6, 8]
    assert found.leaked(found.confirmed) == 1
    assert found.leaked(found.pairs) == 2


def planted() -> tuple[InMemory, InMemory]:
    """40 training and 12 test images; training 30..33 are copies of 0..3, test 0..2 of training 10..12."""
    images = draw(torch.arange(52), size=32).images
    darker = lambda part: (part.float() * 0.92).round().to(torch.uint8)  # noqa: E731
    images[30:34], images[40:43] = darker(images[0:4]), darker(images[10:13])
    return InMemory(images[:40]), InMemory(images[40:])


def test_planted_duplicates_are_found():
    train, test = planted()
    found = find_duplicates(Small(), {"train": train, "test": test}, VIEWS, DEVICE)
    assert sorted(found.groups) == [*([i, i + 30] for i in range(4)), *([i, i + 30] for i in range(10, 13))]
    assert found.groups[0][1] >= 40  # those with a test image first
    assert (found.count, found.first_test, found.leaked(found.confirmed)) == (52, 40, 3)
    assert found.dropped == [10, 11, 12, 30, 31, 32, 33]
    assert 0.5 < found.threshold < 1


def test_one_image_is_no_duplicate():
    with pytest.raises(UserError, match="duplicates take two"):
        find_duplicates(Small(), {"train": InMemory(planted()[0].images[:1])}, VIEWS, DEVICE)


def test_the_threshold_is_what_altered_copies_reach():
    train, _ = planted()
    values = Small()(VIEWS(train.images, torch.arange(40), 0)[0])
    threshold = copy_threshold(Small(), train, values, torch.arange(40), VIEWS, DEVICE)
    assert 0.5 < threshold < 0.9999
    # What ignores nothing but the mean has lower ones than what ignores nearly all.
    blind = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    means = blind(VIEWS(train.images, torch.arange(40), 0)[0])
    assert copy_threshold(blind, train, means, torch.arange(40), VIEWS, DEVICE) != threshold
