"""A network that `moco segment` trained, from its run's folder."""

from pathlib import Path

from moco.runs.checkpoint import read_checkpoint, require_checkpoint
from moco.transfer.run import SegmentationRun
from moco.transfer.segmentation.config import SegmentationConfig
from moco.transfer.segmentation.task import build
from moco.transfer.segmentation.trained import TrainedSegmenter


def load_segmenter(path: Path | str) -> TrainedSegmenter:
    """The network of a run of `moco segment`, of its newest whole checkpoint, on the CPU, ready to use.

    Raises UserError if there is no such run, or no whole checkpoint in it.
    """
    run = SegmentationRun.open(Path(path))
    config = run.config()
    assert isinstance(config, SegmentationConfig)
    state = read_checkpoint(require_checkpoint(run))
    classes: list[str] = state["facts"]["classes"]
    network = build(config, len(classes), trained=True)
    network.load_state_dict(state["model"])
    return TrainedSegmenter(network, classes)
