"""Detection as a task of the transfer loop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from moco.data import shuffled
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.progress import track
from moco.transfer.config import number_of
from moco.transfer.detection.config import DetectionConfig, options_of
from moco.transfer.detection.dataset import DetectionSet, open_detection
from moco.transfer.detection.evaluation.evaluate import evaluate_detector
from moco.transfer.detection.instances import Target
from moco.transfer.detection.results import write_results
from moco.transfer.detection.structures import build_detector
from moco.transfer.detection.transforms import choose, transform
from moco.transfer.start import build_started
from moco.transfer.task import Measured


@dataclass
class Reader:
    """A training sample: an image and its objects, resized and flipped; a pure function of (seed, epoch, image)."""

    images: DetectionSet
    seed: int
    sides: tuple[int, ...]
    max_side: int
    masks: bool

    def __call__(self, epoch: int, index: int) -> tuple[Tensor, Target]:
        image, target = self.images.image(index), self.images.target(index)
        if not self.masks:
            target = replace(target, masks=None)
        side, flip = choose(self.seed, epoch, torch.tensor([index]), self.sides)
        return transform(image, target, int(side), self.max_side, bool(flip), self.images.flipped_keypoints)


class DetectionTask:
    """Detection, as the transfer loop needs it.

    Args:
        config: of the run.
        train: annotated images to train on, each with an object.
        test: those to evaluate on.

    Raises UserError if the weights to start from do not fit, or the images lack the masks or keypoints that the
    detector is to learn.
    """

    def __init__(self, config: DetectionConfig, train: DetectionSet, test: DetectionSet) -> None:
        self.config, self.train, self.test = config, train, test
        self.images = len(train)
        training = config.training
        sample = train.target(0)
        points = 0 if sample.keypoints is None else sample.keypoints.shape[1]
        if config.model.masks and sample.masks is None:
            raise UserError(f"--masks: the objects of {config.data.source} have boxes alone: --no-masks")
        if config.model.keypoints and not points:
            raise UserError(f"--keypoints: the objects of {config.data.source} have none: --no-keypoints")
        self.model = build(config, len(train.classes), points)
        self.read = Reader(train, training.seed, training.sides, training.max_side, config.model.masks)
        self.precise_bn = config.evaluation.precise_bn

    def losses(self, samples: Sequence[tuple[Tensor, Target]], device: torch.device) -> dict[str, Tensor]:
        """The detector's losses: of the RPN, the box head, and masks or keypoints."""
        images = [image.to(device, non_blocking=True) for image, _ in samples]
        losses: dict[str, Tensor] = self.model(images, [on_device(target, device) for _, target in samples])
        return losses

    def evaluate(self, device: Device, workers: int) -> Measured:
        """AP on the test images."""
        options, training = self.config.evaluation, self.config.training
        evaluation = evaluate_detector(
            self.model,
            self.test,
            device,
            metric=options.metric,
            side=options.test_side,
            maximum=training.max_side,
            workers=workers,
            progress=lambda items: track(items, "evaluation"),
        )

        def write(folder: Path) -> None:
            write_results(folder, evaluation, self.model, self.test, device, self.config)

        return Measured(evaluation.numbers, write)


def build(config: DetectionConfig, classes: int, keypoints: int) -> torch.nn.Module:
    """The detector of a configuration, its encoder started from given weights. Raises UserError if they do not fit."""
    encoder = build_started(config.encoder, config.training.seed)
    detector = build_detector(config.model.structure, encoder, classes, **options_of(config.model, keypoints))
    detector.sampled_regions = config.model.regions
    return detector


def open_sets(config: DetectionConfig) -> tuple[DetectionSet, DetectionSet]:
    """Training images, those with labels alone, and test images. Raises UserError if one of the two is empty."""
    spec = config.data.source
    train, test = open_detection(spec, keypoints=config.model.keypoints, size=config.data.size)
    if test is None:
        raise UserError(f"--data {spec}: there are no images to test on, and too few to keep some for it")
    usable = train.with_objects()
    if not len(usable):
        raise UserError(f"--data {spec}: no training image has an object to train on")
    return train.subset(usable[labelled(config, len(usable))].tolist()), test


def labelled(config: DetectionConfig, images: int) -> Tensor:
    """Which of so many images `--labels` takes: the first ones of a random order of the seed, so smaller shares are
    part of larger ones. int64."""
    number = number_of(config.data.labels, images)
    if number > images:
        raise UserError(f"--labels {config.data.labels}: there are {images} training images with objects")
    return shuffled(torch.arange(number), images, config.training.seed, 1).sort().values


def on_device(target: Target, device: torch.device) -> Target:
    """The objects there; polygons stay on the CPU, where they are drawn."""
    move = lambda tensor: None if tensor is None else tensor.to(device, non_blocking=True)  # noqa: E731
    masks = move(target.masks) if isinstance(target.masks, Tensor) else target.masks
    boxes, classes = target.boxes.to(device, non_blocking=True), target.classes.to(device, non_blocking=True)
    return Target(boxes, classes, masks, move(target.keypoints))
