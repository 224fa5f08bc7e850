"""Crop, length and batch for one's own labelled images on this machine, each with its reason."""

from dataclasses import dataclass, replace
from statistics import median

from moco.runtime.errors import UserError
from moco.transfer.detection.suggest import SAMPLED
from moco.transfer.recipes import Choice
from moco.transfer.segmentation.config import SegmentationConfig
from moco.transfer.segmentation.sets import SegmentationSet

PASSES = 45
"""Over the images: what 30k steps of 16 are for VOC's 10,582."""
LARGEST_CROP = {"cpu": 257, "gpu": 769}
"""In pixels; on a GPU that of Cityscapes."""


@dataclass(frozen=True)
class Facts:
    """What the choices follow from: training images, the median of their longer sides in pixels, and whether the
    network is trained on a GPU, with so many GB of free memory."""

    images: int
    side: float
    gpu_gb: float | None


def examine(images: SegmentationSet, gpu_gb: float | None) -> Facts:
    """The facts of a set of labelled images. Raises UserError if none of the first ones can be read."""
    sides, error = [], None
    for index in range(0, len(images), max(1, len(images) // SAMPLED)):
        try:
            sides.append(max(images.read(index)[1].shape))
        except UserError as unreadable:
            error = error or unreadable
    if not sides:
        raise UserError(f"no training image can be read: {error}")
    return Facts(len(images), median(sides), gpu_gb)


def suggest(facts: Facts, config: SegmentationConfig) -> tuple[SegmentationConfig, list[Choice]]:
    """The recipe's configuration for one's own images, and the reason of each choice."""
    gpu = facts.gpu_gb is not None
    batch = min(16 if (facts.gpu_gb or 0) > 30 else 8 if gpu else 4, max(facts.images, 2))
    largest = LARGEST_CROP["gpu" if gpu else "cpu"]
    crop = int(min(max(-(-facts.side // 16) * 16 + 1, 33), largest))
    steps = min(max(PASSES * facts.images // batch, 200), 30_000)
    lr, milestones = 0.003 / 16 * batch, (steps * 7 // 10, steps * 9 // 10)
    length = f"{PASSES} passes over {facts.images:,} images, as VOC's 30,000 steps; at least 200, at most 30,000"
    where = "a GPU" if gpu else "a CPU"
    choices = [
        Choice(
            "--crop",
            crop,
            f"images of {facts.side:.0f} pixels, whole at scale 1 as VOC's; at most {largest} on {where}",
        ),
        Choice(
            "--batch-size", batch, "the paper's 16 where the GPU's memory allows" if gpu else "a CPU: few images a step"
        ),
        Choice("--lr", lr, "0.003 for 16 images as for VOC, in proportion"),
        Choice("--iterations", steps, length),
        Choice("--milestones", milestones, "at 70 % and 90 % of the length, as published"),
    ]
    training = replace(
        config.training, crop=crop, batch_size=batch, lr=lr, iterations=steps, milestones=milestones, warmup=0
    )
    return replace(config, training=training), choices
