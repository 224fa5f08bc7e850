"""What the progress bar counts."""

import pytest

from moco.training import log


def test_the_rate_is_of_the_images_since_the_bar_was_made(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    bar = log.Bar(step=10, steps=50, images_per_step=32)
    now[0] += 4.0
    assert bar.update(15, loss=1.0) == pytest.approx(5 * 32 / 4)
    now[0] += 1.0
    assert bar.update(20) == pytest.approx(10 * 32 / 5)
    assert bar.values["loss"] == 1.0
    bar.close()
