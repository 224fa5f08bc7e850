"""A detector that `moco detect` trained, from its run's folder."""

from pathlib import Path

from moco.runs.checkpoint import read_checkpoint, require_checkpoint
from moco.transfer.detection.config import DetectionConfig
from moco.transfer.detection.task import build
from moco.transfer.detection.trained import TrainedDetector
from moco.transfer.run import DetectionRun


def load_detector(path: Path | str) -> TrainedDetector:
    """The detector of a run of `moco detect`, of its newest whole checkpoint, on the CPU, ready to use.

    Raises UserError if there is no such run, or no whole checkpoint in it.
    """
    run = DetectionRun.open(Path(path))
    config = run.config()
    assert isinstance(config, DetectionConfig)
    state = read_checkpoint(require_checkpoint(run))
    classes, keypoints = state["facts"]["classes"], state["facts"]["keypoints"]
    detector = build(config, len(classes), keypoints, trained=True)
    detector.load_state_dict(state["model"])
    return TrainedDetector(detector, classes, config.evaluation.test_side, config.training.max_side)
