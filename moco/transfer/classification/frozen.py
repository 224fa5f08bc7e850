"""Protocols on frozen features, on the labels that fine-tuning has: linear (section 4.1), k nearest neighbours."""

from dataclasses import replace
from typing import Any

from moco.data import ImageSet
from moco.evaluation import extract, knn_predict
from moco.evaluation.features import Features
from moco.evaluation.knn import half_unit
from moco.evaluation.linear import train_linear
from moco.runs.config import Linear
from moco.runs.folder import RunFolder
from moco.runs.options import differences
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.progress import track
from moco.runtime.ranks import on_main
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.classification.network import test_views
from moco.transfer.classification.recipes import CLASSIFICATION, LINEAR_FALLS
from moco.transfer.classification.results import accuracies
from moco.transfer.classification.sets import ClassifiedSets
from moco.transfer.classification.task import ClassificationTask, measured
from moco.transfer.config import Schedule
from moco.transfer.task import Measured
from moco.transfer.trainer import Trainer
from moco.views import CentreCrop


class FrozenTask(ClassificationTask):
    """A run whose encoder stays as it is.

    Raises UserError as `ClassificationTask`, and for options of a new run that its protocol does not have.
    """

    def __init__(self, config: ClassificationConfig, sets: ClassifiedSets, trained: bool = False) -> None:
        if not trained:
            require_own_schedule(config)
        super().__init__(config, sets, trained)

    def run(self, run: RunFolder[Any], device: Device, workers: int | None) -> Measured:
        """What is measured, written into the run's folder; of `linear` the classifier too, as a checkpoint."""
        protocol = self.config.model.protocol
        if protocol == "linear":
            trainer = Trainer(self.config, self, run, device)
            self._fit(device, workers)
            trainer.step = self.config.training.iterations
            trainer.save()
            found = self.evaluate(device, workers)
        else:
            self.model.to(device.device, memory_format=device.memory_format)  # type: ignore[call-overload]
            found = self._vote(device, workers)
        on_main(lambda: found.write(run.path))
        return found

    def _fit(self, device: Device, workers: int | None) -> None:
        """Trains the linear layer."""
        training, train = self.config.training, self.sets.train
        if len(train) < training.batch_size:
            raise UserError(f"--batch-size {training.batch_size}: there are {len(train)} training images: give no more")
        steps = len(train) // training.batch_size
        options = Linear(
            epochs=max(1, round(training.iterations / steps)),
            batch_size=training.batch_size,
            lr=training.lr,
            weight_decay=training.weight_decay,
            cached=self.config.model.cached,
            seed=training.seed,
        )
        layer, classes = self.model.classifier, len(self.sets.classes)
        progress = lambda epochs: track(epochs, "linear")  # noqa: E731
        trained = train_linear(
            self.model.encoder,
            layer.in_features,
            train,
            classes,
            self._centre(device),
            device,
            options,
            workers,
            progress,
        )
        layer.load_state_dict(trained.state_dict())

    def _vote(self, device: Device, workers: int | None) -> Measured:
        """The accuracy of the k nearest neighbours."""
        options, classes = self.config.model, self.sets.classes
        bank, test = (self._features(images, device, workers) for images in (self.sets.train, self.sets.test))
        predicted = knn_predict(bank, test.values, len(classes), options.k, options.temperature, device.device)
        return measured(self.config, self.sets, accuracies(predicted[:, None], test.labels, classes))

    def _features(self, images: ImageSet, device: Device, workers: int | None) -> Features:
        return extract(self.model.encoder, images, self._centre(device), device, workers=workers, keep=half_unit)

    def _centre(self, device: Device) -> CentreCrop:
        views = self.config.views
        return test_views(views.image_size, views.normalisation, device.channels_last)


def require_own_schedule(config: ClassificationConfig) -> None:
    """Raises UserError, naming them, for options of the schedule that the protocol would ignore."""
    training, protocol = config.training, config.model.protocol
    if protocol == "linear":
        own = tuple(round(share * training.iterations) for share in LINEAR_FALLS)
        given = training.milestones  # which the linear rule rounds once more
        near = len(given) == len(own) and all(abs(a - b) <= 1 for a, b in zip(own, given, strict=True))
        milestones = given if near else own
        expected: Schedule = replace(training, schedule="step", falls=LINEAR_FALLS, gamma=0.1, milestones=milestones)
        expected = replace(expected, warmup=0, sgd_momentum=0.9)
        why = "falls to a tenth at 60 % and 80 % of its length (section 4.1)"
    else:
        recipe = CLASSIFICATION[config.recipe].config.training
        expected = replace(recipe, seed=training.seed, iterations=training.iterations)
        why = "trains nothing"
    if ignored := differences(expected, training, ()):
        raise UserError(f"--protocol {protocol}: {why}: leave out {', '.join(ignored)}")
