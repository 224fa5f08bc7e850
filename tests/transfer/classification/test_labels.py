"""Which labelled images are trained on: of every class alike, fixed by the seed, smaller numbers within larger ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moco.runtime.errors import UserError
from moco.transfer.classification.labels import imbalance, labelled

CLASSES = ["a", "b", "c"]
COUNTS = st.lists(st.integers(1, 60), min_size=3, max_size=3)
SEEDS = st.integers(0, 2**63 - 1)


def labels_of(counts: list[int]) -> torch.Tensor:
    """So many labels of each class, mixed by a fixed order."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@given(COUNTS, SEEDS, st.data())
def test_a_number_is_of_each_class_and_part_of_a_larger_one(counts, seed, data):
    labels = labels_of(counts)
    few, many = sorted(data.draw(st.lists(st.integers(1, min(counts)), min_size=2, max_size=2)))
    small, large = (labelled(labels, str(number), seed, CLASSES) for number in (few, many))
    assert labels[small].bincount(minlength=3).tolist() == [few] * 3
    assert labels[large].bincount(minlength=3).tolist() == [many] * 3
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.equal(small, small.unique())  # ascending, each once
    assert torch.equal(small, labelled(labels, str(few), seed, CLASSES))


@given(COUNTS, SEEDS, st.floats(0.5, 100), st.floats(0.5, 100))
def test_a_share_is_one_of_each_class(counts, seed, one, other):
    labels = labels_of(counts)
    few, many = sorted((one, other))
    if any(round(few / 100 * count) == 0 for count in counts):
        with pytest.raises(UserError, match=r"leaves class . of \d+ training images, without any|leaves class"):
            labelled(labels, f"{few!r}%", seed, CLASSES)
        return
    small, large = (labelled(labels, f"{share!r}%", seed, CLASSES) for share in (few, many))
    for label, count in enumerate(counts):
        assert abs(int((labels[small] == label).sum()) - few / 100 * count) <= 0.5 + 1e-9
    assert set(small.tolist()) <= set(large.tolist())


def test_another_seed_takes_others():
    labels = labels_of([60, 60, 60])
    assert not torch.equal(labelled(labels, "5", 0, CLASSES), labelled(labels, "5", 1, CLASSES))


def test_all_are_all():
    assert labelled(labels_of([3, 4, 5]), "all", 0, CLASSES).tolist() == list(range(12))


def test_more_than_a_class_has():
    with pytest.raises(UserError, match="--labels 4: class a has 3 training images"):
        labelled(labels_of([3, 40, 50]), "4", 0, CLASSES)


@pytest.mark.parametrize("wanted", ["0", "-1", "x", "101%", "0%", "1.5"])
def test_no_number(wanted):
    with pytest.raises(UserError, match=f"--labels {wanted}"):
        labelled(labels_of([3, 4, 5]), wanted, 0, CLASSES)


def test_unequal_classes_are_reported():
    assert imbalance([10, 19, 15], CLASSES) == ""
    assert "20 training images of b, 10 of a" in imbalance([10, 20, 15], CLASSES)
