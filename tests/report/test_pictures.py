"""The pictures of a run's folder."""

import json

from PIL import Image

from moco.report.pictures import draw_curves
from moco.runs.config import Config
from moco.runs.folder import Run


def test_a_panel_is_drawn_for_what_was_measured(tmp_path):
    run = Run.create(tmp_path / "run", Config())
    widths = []
    for more in ({}, {"knn": 0.5}):  # without labels there is no kNN accuracy
        lines = [{"step": step, "epoch": step / 2, "loss": 1.0, "accuracy": 0.1, **more} for step in (1, 2)]
        run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        with Image.open(draw_curves(run)) as picture:
            widths.append(picture.width)
    assert 3 * widths[0] == 2 * widths[1]
