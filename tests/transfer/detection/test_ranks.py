"""Losses, gradients and BN statistics of two gloo ranks are those of one process with the whole batch."""

import pytest

from tests.launch import launch


@pytest.mark.slow
def test_two_ranks_of_unequal_numbers_of_images_are_one_process(tmp_path):
    launch(2, "-m", "tests.transfer.detection.ranks", str(tmp_path))
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["equal", "equal"]
