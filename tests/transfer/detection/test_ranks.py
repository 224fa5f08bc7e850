"""Losses, gradients and BN statistics of two gloo ranks are those of one process with the whole batch."""

import pytest

from tests.ranks import on_ranks


@pytest.mark.slow
def test_two_ranks_of_unequal_numbers_of_images_are_one_process(tmp_path):
    on_ranks(2, "tests.transfer.detection.ranks", tmp_path)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["equal", "equal"]
