"""Scales, length and batch for one's own annotated images on this machine, each with its reason."""

from dataclasses import dataclass, replace
from statistics import median

from moco.runtime.errors import UserError
from moco.transfer.detection.config import DetectionConfig
from moco.transfer.detection.dataset import DetectionSet
from moco.transfer.recipes import Choice

SAMPLED = 50
"""Images that are examined."""
ANCHOR = 32
"""Side in pixels of the smallest anchor: objects should not be much smaller once they are resized."""
EPOCHS = 36
"""Passes over the images: what COCO's 3x schedule takes, as small sets are fine-tuned for long."""


@dataclass(frozen=True)
class Facts:
    """What the choices follow from: training images, the median shorter side and the median side of an object in
    pixels, whether there are masks, and whether the detector is trained on a GPU, with so many GB of memory."""

    images: int
    side: float
    object_side: float
    masks: bool
    gpu_gb: float | None


def examine(images: DetectionSet, gpu_gb: float | None) -> Facts:
    """The facts of a set of annotated images. Raises UserError if none of the first ones can be read."""
    sides, objects, masks = [], [], False
    step = max(1, len(images) // SAMPLED)
    for index in range(0, len(images), step):
        try:
            pixels, target = images.image(index), images.target(index)
        except UserError:
            continue
        sides.append(min(pixels.shape[1:]))
        size = target.boxes[:, 2:] - target.boxes[:, :2]
        objects += size.prod(1).sqrt().tolist()
        masks |= target.masks is not None
    if not sides:
        raise UserError(f"none of {SAMPLED} training images can be read (moco data names what is wrong)")
    return Facts(len(images), median(sides), median(objects or [ANCHOR]), masks, gpu_gb)


def suggest(facts: Facts, config: DetectionConfig) -> tuple[DetectionConfig, list[Choice]]:
    """The recipe's configuration for one's own images, and the reason of each choice."""
    training, published = config.training, 0.02 / 16
    gpu = facts.gpu_gb is not None
    batch = 16 if gpu and (facts.gpu_gb or 0) > 30 else 8 if gpu else 4
    batch = min(batch, facts.images)
    # Enlarged where the typical object would be below the smallest anchor; never beyond the paper's 800 pixels.
    wanted = facts.side * max(1.0, 1.5 * ANCHOR / facts.object_side)
    most = 800 if gpu else 400
    typical = f"images of {facts.side:.0f} pixels with objects of {facts.object_side:.0f}"
    side = int(min(max(wanted, 64), most) / 16) * 16
    sides = tuple(sorted({round(side * share / 16) * 16 for share in (0.6, 0.7, 0.8, 0.9, 1.0)}))
    steps = min(max(EPOCHS * facts.images // batch, 200), 24_000)
    milestones = (steps * 3 // 4, steps * 11 // 12)
    regions = 512 if gpu else 64
    masks = facts.masks and config.model.structure != "dc5"
    about_masks = "there are masks" if masks else "the objects have boxes alone"
    if facts.masks and not masks:
        about_masks = "dc5 has no mask head"
    choices = [
        Choice(
            "--batch-size", batch, "the paper's 16 where the GPU's memory allows" if gpu else "a CPU: few images a step"
        ),
        Choice("--lr", published * batch, "0.02 for 16 images, in proportion"),
        Choice(
            "--iterations", steps, f"{EPOCHS} passes over {facts.images:,} images, at least 200 steps, at most 24,000"
        ),
        Choice("--milestones", milestones, "at 18/24 and 22/24 of the length, as for VOC"),
        Choice("--warmup", min(100, steps // 10), "100 steps, of a short run a tenth"),
        Choice(
            "--test-side",
            side,
            f"{typical}; the smallest anchor has {ANCHOR}" + ("" if gpu else f"; at most {most} on a CPU"),
        ),
        Choice("--sides", sides, "0.6 to 1 times that, as 480 to 800 for VOC"),
        Choice("--masks", masks, about_masks),
        Choice("--regions", regions, "the paper's" if gpu else "a CPU: the box head is most of the work"),
        Choice("--proposals", 1000 if gpu else 100, "the paper's" if gpu else "a CPU: most of an evaluation"),
        Choice("--precise-bn", min(200, steps // 4), "the paper's 200 batches, of a short run a quarter"),
    ]
    values = {choice.flag.removeprefix("--").replace("-", "_"): choice.value for choice in choices}
    schedule = ("batch_size", "lr", "iterations", "milestones", "warmup", "sides")
    evaluation = ("test_side", "precise_bn", "proposals")
    config = replace(
        config,
        training=replace(training, **{name: values[name] for name in schedule}),
        evaluation=replace(config.evaluation, **{name: values[name] for name in evaluation}),
        model=replace(config.model, masks=masks, regions=regions),
    )
    return config, choices
