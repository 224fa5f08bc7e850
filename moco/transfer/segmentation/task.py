"""Semantic segmentation as a task of the transfer loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco.contrast.batchnorm import synchronise_batch_norm
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.progress import console, track
from moco.transfer.labels import equally_spaced, labelled
from moco.transfer.normalisation import normalisation_of
from moco.transfer.segmentation.config import SegmentationConfig
from moco.transfer.segmentation.evaluate import evaluate_segmentation
from moco.transfer.segmentation.fcn import FCN, pixel_loss
from moco.transfer.segmentation.results import examples_of, results_table, write_results
from moco.transfer.segmentation.sets import SegmentationSet, open_segmentation
from moco.transfer.segmentation.transforms import augment, draw
from moco.transfer.start import build_started, normalise_by
from moco.transfer.task import Measured, Read
from moco.views.recipes import IMAGENET

HEAD_WIDTH = 256
"""Channels of the two new convolutions, as published."""


@dataclass
class Reader:
    """A training sample: a crop of an image and its labels; a pure function of (seed, epoch, image)."""

    images: SegmentationSet
    seed: int
    crop: int
    mean: Sequence[float] = IMAGENET[0]
    """Colour of what lies beyond the image, R, G and B in 0..1."""

    def __call__(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.images.read(index)
        return augment(image, labels, draw(self.seed, epoch, torch.tensor([index]))[0], self.crop, self.mean)


class SegmentationTask:
    """Semantic segmentation, as the transfer loop needs it.

    Args:
        config: of the run.
        train: labelled images to train on.
        test: those to evaluate on.
        trained: a checkpoint fills the network next.

    Raises UserError if the weights to start from do not fit, or if a batch is too small for batch normalisation.
    """

    def __init__(
        self, config: SegmentationConfig, train: SegmentationSet, test: SegmentationSet, trained: bool = False
    ) -> None:
        self.config, self.test = config, test
        self.images, self.facts = len(train), {"classes": list(train.classes)}
        training = config.training
        self.model: nn.Module = synchronise_batch_norm(build(config, len(train.classes), trained))
        if training.batch_size == 1 and training.crop <= int(self.model.stride):  # type: ignore[arg-type]
            raise UserError(
                f"--crop {training.crop}: of a batch of one such crop BN sees a single position: give a larger one"
            )
        self.read: Read = Reader(train, training.seed, training.crop, normalisation_of(config.model.normalisation)[0])
        self.precise_bn = 0
        self.device_format = torch.channels_last if config.compute.channels_last else torch.contiguous_format

    def losses(self, samples: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> dict[str, Tensor]:
        """The mean cross-entropy of a pixel; logits are float32 whatever the precision."""
        images, labels = (
            torch.stack([each.to(device, non_blocking=True) for each in column])
            for column in zip(*samples, strict=True)
        )
        return {"cross_entropy": pixel_loss(self.model(images.to(memory_format=self.device_format)), labels)}

    def evaluate(self, device: Device, workers: int | None) -> Measured:
        """mIoU on the test images."""
        progress = lambda items: track(items, "evaluation")  # noqa: E731
        evaluation = evaluate_segmentation(self.model, self.test, device, workers, progress)

        def write(folder: Path) -> None:
            write_results(folder, evaluation, examples_of(self.model, self.test, device), about(self.config))
            console.print(results_table(evaluation))

        return Measured(evaluation.numbers, write)


def about(config: SegmentationConfig) -> dict[str, Any]:
    """What results.json holds of the run besides what was measured."""
    start = {"recipe": config.recipe, "init": config.encoder.init, "encoder": config.encoder.encoder}
    return start | {"data": config.data.source, "labels": config.data.labels, "seed": config.training.seed}


def build(config: SegmentationConfig, classes: int, trained: bool = False) -> FCN:
    """The network of a configuration, its encoder started from given weights. Raises UserError if they do not fit."""
    width = max(8, round(HEAD_WIDTH * config.model.head_width))
    seen = normalisation_of(config.model.normalisation)
    network = FCN(build_started(config.encoder, config.training.seed, trained, seen), classes, width)
    normalise_by(network, seen)
    return network


def open_sets(config: SegmentationConfig) -> tuple[SegmentationSet, SegmentationSet]:
    """Training images, those with labels alone, and test images."""
    train, test = open_segmentation(config.data.source, size=config.data.size)
    chosen = labelled(config.data.labels, len(train), config.training.seed, "training images")
    return train.subset(chosen), test.subset(equally_spaced(len(test), config.evaluation.test_images))
