"""Detection as a task of the transfer loop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.progress import console, track
from moco.transfer.detection.annotations.annotated import Skipped
from moco.transfer.detection.config import DetectionConfig, options_of
from moco.transfer.detection.dataset import DetectionSet, open_detection
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.evaluation.evaluate import evaluate_detector
from moco.transfer.detection.instances import Target
from moco.transfer.detection.results import class_table, examples_of, results_table, write_results
from moco.transfer.detection.structures import build_detector
from moco.transfer.detection.transforms import choose, transform
from moco.transfer.labels import equally_spaced, labelled
from moco.transfer.normalisation import normalisation_of
from moco.transfer.start import build_started, normalise_by
from moco.transfer.task import Measured, Read


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
        trained: a checkpoint fills the detector next.

    Raises UserError if the weights to start from do not fit, or the images lack the masks or keypoints that the
    detector is to learn.
    """

    def __init__(self, config: DetectionConfig, train: DetectionSet, test: DetectionSet, trained: bool = False) -> None:
        self.config, self.train, self.test = config, train, test
        self.images = len(train)
        training = config.training
        sample = train.target(0)
        points = 0 if sample.keypoints is None else sample.keypoints.shape[1]
        if config.model.masks and config.model.structure == "dc5":
            raise UserError("--masks: dc5 has no mask head: --no-masks, or --structure c4 or fpn")
        if config.model.keypoints and config.model.structure != "fpn":
            raise UserError("--keypoints: only fpn has a keypoint head: --no-keypoints, or --structure fpn")
        if config.model.masks and sample.masks is None:
            raise UserError(f"--masks: the objects of {config.data.source} have boxes alone: --no-masks")
        if config.model.keypoints and not len(train.with_objects(keypoints=True)):
            raise UserError(f"--keypoints: the objects of {config.data.source} have none: --no-keypoints")
        self.detector = build(config, len(train.classes), points, trained)
        self.model: nn.Module = self.detector
        self.read: Read = Reader(train, training.seed, training.sides, training.max_side, config.model.masks)
        self.precise_bn = config.evaluation.precise_bn
        self.facts = {"classes": train.classes, "keypoints": points}

    def losses(self, samples: Sequence[tuple[Tensor, Target]], device: torch.device) -> dict[str, Tensor]:
        """The detector's losses: of the RPN, the box head, and masks or keypoints."""
        images = [image.to(device, non_blocking=True) for image, _ in samples]
        losses: dict[str, Tensor] = self.model(images, [on_device(target, device) for _, target in samples])
        return losses

    def evaluate(self, device: Device, workers: int | None) -> Measured:
        """AP on the test images."""
        options = self.config.evaluation
        side, maximum = options.test_side, self.config.training.max_side
        evaluation = evaluate_detector(
            self.detector,
            self.test,
            device,
            metric=options.metric,
            side=side,
            maximum=maximum,
            workers=workers,
            progress=lambda items: track(items, "evaluation"),
        )

        def write(folder: Path) -> None:
            examples = examples_of(self.detector, self.test, device, side=side, maximum=maximum)
            write_results(folder, evaluation, examples, about(self.config))
            console.print(results_table(evaluation, self.config.recipe))
            console.print(class_table(evaluation))

        return Measured(evaluation.numbers, write)


def about(config: DetectionConfig) -> dict[str, Any]:
    """What results.json says of the run besides what was measured."""
    start = {"recipe": config.recipe, "init": config.encoder.init, "encoder": config.encoder.encoder}
    return start | {"data": config.data.source, "labels": config.data.labels, "seed": config.training.seed}


def build(config: DetectionConfig, classes: int, keypoints: int, trained: bool = False) -> Detector:
    """The detector of a configuration, its encoder started from given weights. Raises UserError if they do not fit."""
    seen = normalisation_of(config.model.normalisation)
    encoder = build_started(config.encoder, config.training.seed, trained, seen)
    detector = build_detector(config.model.structure, encoder, classes, **options_of(config.model, keypoints))
    normalise_by(detector, seen)
    detector.sampled_regions = config.model.regions
    detector.rpn.limits = replace(detector.rpn.limits, after_nms=config.evaluation.proposals)
    return detector


def open_sets(config: DetectionConfig) -> tuple[DetectionSet, DetectionSet]:
    """Training images, those with labels alone, and test images. Raises UserError if one of the two is empty.

    A keypoint head is trained on images with a visible keypoint, as in Detectron2 (MIN_KEYPOINTS_PER_IMAGE = 1).
    """
    spec = config.data.source
    train, test = open_detection(
        spec, keypoints=config.model.keypoints, masks=config.model.masks, size=config.data.size
    )
    if test is None:
        raise UserError(f"--data {spec}: there are no images to test on, and too few to keep some for it")
    usable = train.with_objects()
    if not len(usable):
        raise UserError(f"--data {spec}: no training image has an object to train on")
    if config.model.keypoints:
        usable = _with_keypoints(train, usable, spec)
    chosen = labelled(config.data.labels, len(usable), config.training.seed, "training images with objects")
    return train.subset(usable[chosen].tolist()), test.subset(equally_spaced(len(test), config.evaluation.test_images))


def _with_keypoints(train: DetectionSet, usable: Tensor, spec: str) -> Tensor:
    """Of the usable images those with a visible keypoint; the others are counted in the log. Without any: all."""
    seen = train.with_objects(keypoints=True)
    if not len(seen):  # which the task refuses
        return usable
    skipped = Skipped(spec)
    for index in usable[~torch.isin(usable, seen)].tolist():
        skipped.add("training images without a visible keypoint", train.name(index))
    skipped.log()
    return seen


def on_device(target: Target, device: torch.device) -> Target:
    """The objects there; polygons stay on the CPU, where they are drawn."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    masks = move(target.masks) if isinstance(target.masks, Tensor) else target.masks
    keypoints = None if target.keypoints is None else move(target.keypoints)
    return Target(move(target.boxes), move(target.classes), masks, keypoints)
