"""A classifier that `moco finetune` trained, from its run's folder."""

from pathlib import Path

from moco.encoders import build_encoder
from moco.runs.checkpoint import read_checkpoint, require_checkpoint
from moco.runtime.errors import UserError
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.classification.network import Classifier
from moco.transfer.classification.trained import TrainedClassifier
from moco.transfer.run import FinetuneRun


def load_classifier(path: Path | str) -> TrainedClassifier:
    """The classifier of a run of `moco finetune`, of its newest whole checkpoint, on the CPU, ready to use.

    `load_classifier("runs/cells")(["cell.png"])` gives the probability of each of its `classes`.

    Raises UserError if there is no such run, no whole checkpoint in it, or no classifier (--protocol knn).
    """
    run = FinetuneRun.open(Path(path))
    config = run.config()
    assert isinstance(config, ClassificationConfig)
    if config.model.protocol == "knn":
        raise UserError(f"{path}: --protocol knn trains no classifier: --protocol linear does, on the same features")
    state = read_checkpoint(require_checkpoint(run))
    options = config.encoder
    encoder = build_encoder(options.encoder, options.small_stem, options.freeze_patches)
    network = Classifier(encoder, len(state["facts"]["classes"]))
    network.load_state_dict(state["model"])
    return TrainedClassifier(network, state["facts"]["classes"], config.views.image_size, config.views.normalisation)
