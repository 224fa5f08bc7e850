"""What the progress bar counts, and which rank logs."""

import logging

import pytest

from moco.runs.config import Config
from moco.runs.folder import Run
from moco.training import log, start_logging


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


@pytest.mark.parametrize("main", [True, False])
def test_only_the_main_rank_logs(tmp_path, capsys, main):
    run, logger = Run.create(tmp_path / "run", Config()), logging.getLogger("moco")
    before = logger.handlers[:], logger.propagate, logger.level
    try:
        start_logging(run, main)
        logger.warning("something")
        for handler in logger.handlers:
            handler.close()
    finally:
        logger.handlers[:], logger.propagate = before[:2]
        logger.setLevel(before[2])
    assert (run.path / "log.txt").exists() == main
    assert not main or "WARNING something" in (run.path / "log.txt").read_text()
    assert ("something" in capsys.readouterr().err) == main
