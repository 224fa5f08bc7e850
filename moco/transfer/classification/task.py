"""Classification as a task of the transfer loop."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moco.data import Batch, Loader
from moco.evaluation import encode
from moco.runtime.device import Device
from moco.runtime.progress import console, track
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.classification.network import Classifier, require_size, test_views, training_views
from moco.transfer.classification.results import TOP, Accuracies, accuracies, class_table, write_results
from moco.transfer.classification.sets import ClassifiedSets
from moco.transfer.normalisation import normalisation_of
from moco.transfer.start import build_started
from moco.transfer.task import Measured


class ClassificationTask:
    """Fine-tuning of an encoder and a linear classifier, as the transfer loop needs it.

    Args:
        config: of the run, with nothing left open.
        sets: labelled images.
        trained: a checkpoint fills the network next.

    Raises UserError if the weights to start from do not fit, or the encoder cannot take images of this size.
    """

    precise_bn = 0
    read = None

    def __init__(self, config: ClassificationConfig, sets: ClassifiedSets, trained: bool = False) -> None:
        self.config, self.sets = config, sets
        seen = normalisation_of(config.views.normalisation)
        encoder = build_started(config.encoder, config.training.seed, trained, seen)
        require_size(encoder, config.views.image_size, config.encoder.encoder)
        self.model = Classifier(encoder, len(sets.classes))
        self.images = len(sets.train)
        self.facts = {"classes": sets.classes, "counts": sets.counts}

    def batches(self, start: int, stop: int, device: Device, workers: int | None) -> Iterator[Batch]:
        """This rank's share of the views of steps start .. stop-1."""
        views, training = self.config.views, self.config.training
        crops = training_views(
            views.image_size, views.min_area, views.flip, views.normalisation, training.seed, device.channels_last
        )
        loader = Loader(self.sets.train, crops, device.device, workers)
        return loader.training(training.batch_size, training.seed, start, stop)

    def losses(self, samples: Sequence[Batch], device: torch.device) -> dict[str, Tensor]:
        """The cross-entropy of this rank's share of a batch."""
        (batch,) = samples
        assert self.sets.train.labels is not None
        labels = self.sets.train.labels[batch.images].to(device, non_blocking=True)
        return {"cross-entropy": F.cross_entropy(self.model(batch.views[0]).float(), labels)}

    def evaluate(self, device: Device, workers: int | None) -> Measured:
        """Accuracy on the centre crops of the test images, over all and by class."""
        self.sets.train.agree_on_unreadable()
        views, classes = self.config.views, self.sets.classes
        centre = test_views(views.image_size, views.normalisation, device.channels_last)
        top = min(TOP, len(classes))
        ranked, places = encode(
            self.model,
            self.sets.test,
            centre,
            device,
            workers=workers,
            progress=lambda plan: track(plan, "evaluation"),
            keep=lambda logits: logits.topk(top, dim=1).indices,
        )
        assert self.sets.test.labels is not None
        return measured(self.config, self.sets, accuracies(ranked, self.sets.test.labels[places], classes))


def measured(config: ClassificationConfig, sets: ClassifiedSets, found: Accuracies) -> Measured:
    """What an evaluation gives to the loop: numbers, and what it writes and prints."""

    def write(folder: Path) -> None:
        write_results(folder, found, about(config), sets.counts)
        console.print(class_table(found, sets.counts))

    return Measured(found.numbers, write)


def about(config: ClassificationConfig) -> dict[str, Any]:
    """What results.json holds of the run besides what was measured."""
    start = {"recipe": config.recipe, "init": config.encoder.init, "encoder": config.encoder.encoder}
    data = {"data": config.data.source, "labels": config.data.labels, "seed": config.training.seed}
    return start | data | {"protocol": config.model.protocol}
