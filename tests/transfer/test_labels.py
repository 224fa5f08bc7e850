import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco.runtime.errors import UserError
from moco.transfer.labels import equally_spaced, labelled


@given(images=st.integers(1, 400), seed=st.integers(0, 5), data=st.data())
def test_fewer_labels_are_among_more(images, seed, data):
    more = data.draw(st.integers(1, images))
    fewer = data.draw(st.integers(1, more))
    large, small = (labelled(str(number), images, seed, "images") for number in (more, fewer))
    assert set(small) <= set(large) <= set(range(images))
    assert (len(large), len(small)) == (more, fewer)
    assert large == sorted(large)


def test_which_have_labels_follows_from_the_seed():
    assert labelled("5", 100, 0, "images") != labelled("5", 100, 1, "images")
    assert labelled("all", 7, 3, "images") == list(range(7))


def test_more_labels_than_images_are_refused():
    with pytest.raises(UserError, match="--labels 9: there are 8 drawings"):
        labelled("9", 8, 0, "drawings")


@pytest.mark.parametrize(
    ("images", "number", "expected"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (9, 1, [0])],
)
def test_test_images_are_at_equal_distances(images, number, expected):
    assert equally_spaced(images, number) == expected
