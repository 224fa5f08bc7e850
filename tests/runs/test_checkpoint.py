"""A run without a checkpoint: one line, whichever way its weights are read."""

import pytest

import moco
from moco.cli.main import main
from moco.runs.config import Config
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.transfer.detection.config import DetectionConfig
from moco.transfer.run import DetectionRun, SegmentationRun
from moco.transfer.segmentation.config import SegmentationConfig

MESSAGE = "run: the run has no checkpoint yet"


def test_a_pre_trained_run(tmp_path):
    Run.create(tmp_path / "run", Config())
    with pytest.raises(UserError, match=MESSAGE):
        moco.load_encoder(tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "config", "load"),
    [(DetectionRun, DetectionConfig, moco.load_detector), (SegmentationRun, SegmentationConfig, moco.load_segmenter)],
)
def test_a_transfer_run(tmp_path, kind, config, load, capsys):
    kind.create(tmp_path / "run", config())
    with pytest.raises(UserError, match=MESSAGE):
        load(tmp_path / "run")
    with pytest.raises(SystemExit) as left:
        main([config().task, str(tmp_path / "run"), "--eval-only", "--device", "cpu"])
    assert left.value.code == 2
    assert capsys.readouterr().err.strip().endswith(MESSAGE)
