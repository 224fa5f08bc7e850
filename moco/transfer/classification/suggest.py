"""Size, batch, length and learning rate of a run, from its images, its labels, this machine and what it starts from."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from moco.encoders import build_encoder, fixed_size
from moco.runs.config import Encoder
from moco.runs.folder import read_values
from moco.runs.weights import read_weights
from moco.transfer.classification.config import ClassificationConfig, ClassificationSchedule
from moco.transfer.classification.recipes import CLASSIFICATION, LINEAR_FALLS, SCRATCH_LR
from moco.transfer.normalisation import normalisation_of, normalisation_of_start, normalisation_of_weights, written
from moco.transfer.recipes import Choice
from moco.transfer.start import encoder_of

SIZES = (224, 192, 160, 128, 96, 64, 48, 32)
SMALL = 64
"""Views up to so many pixels are small: a stem that halves them twice loses what is in them."""
GIVEN, SCRATCH = 0.03, 0.1
"""Learning rates for 256 images, from given weights and from random ones (appendix A.7)."""
LINEAR = 30.0
"""That of the linear protocol (section 4.1)."""
LINEAR_STEPS = 1000
"""Steps that it takes at least: of few images, 100 epochs are few steps."""


@dataclass(frozen=True)
class Facts:
    """What the choices follow from.

    Attributes:
        images: labelled images that are trained on.
        smallest: of them, those of the smallest class.
        side: the median of the images' shorter sides, in pixels.
        gpu: whether a GPU computes.
    """

    images: int
    smallest: int
    side: int
    gpu: bool


@dataclass(frozen=True)
class Seen:
    """How the encoder saw images in its pre-training: height and width in pixels, and their normalisation."""

    image_size: int
    normalisation: str
    """As --normalisation."""
    fixed: bool = False
    """It takes images of no other size."""


def seen_by(init: str) -> Seen | None:
    """How images looked in the pre-training of given weights; None of random ones. UserError if there are none."""
    if init == "random":
        return None
    size: int | None = None
    if (file := Path(init) / "config.yaml").is_file():
        size = read_values(file).get("views", {}).get("image_size")
        encoder, normalisation = encoder_of(init, Encoder()).encoder, normalisation_of_start(init)
    elif init.startswith(("torchvision:", "timm:")):  # of ImageNet and the like; not read, but for what the name gives
        encoder = init.split(":")[1] if init.startswith("torchvision:") else init
        normalisation = normalisation_of_start(init)
    else:
        weights = read_weights(init)
        size, encoder, normalisation = (
            weights.image_size,
            weights.encoder or "resnet50",
            normalisation_of_weights(weights),
        )
    fixed = fixed_size(build_encoder(encoder))
    return Seen(fixed or int(size or 224), written(normalisation), fixed is not None)


def suggest(config: ClassificationConfig, facts: Facts, seen: Seen | None) -> tuple[ClassificationConfig, list[Choice]]:
    """The configuration for the facts, and the reason of each choice.

    Args:
        config: of the command line; what it leaves open is decided.
        seen: how images look, where it follows from given weights, of this run or of one that it is compared with.
    """
    given = config.encoder.init != "random"
    choices = [] if seen is not None else _architecture(config, facts)
    config = _with_encoder(config, choices)
    size = _size(config, facts, seen)
    views = replace(config.views, image_size=size.value, normalisation=_normalisation(config, size.value, seen))
    choices += [size] if config.views.image_size == 0 else []
    config = replace(config, views=views)
    if config.model.protocol == "knn":
        return _neighbours(config, facts, choices)
    recipe = CLASSIFICATION[config.recipe].config.training if config.recipe in CLASSIFICATION else config.training
    training, more = _schedule(config, facts, given, config.training.batch_size == recipe.batch_size)
    return replace(config, training=training), choices + more


def _architecture(config: ClassificationConfig, facts: Facts) -> list[Choice]:
    """The encoder of a run from scratch on one's own images."""
    if config.recipe != "own" or config.encoder.encoder != "resnet50" or config.encoder.init != "random":
        return []
    size = config.views.image_size or _fitting(facts, random=True)
    if not facts.gpu:
        return [Choice("--encoder", "tiny", "random weights and a CPU: what it trains in minutes")]
    if size > SMALL:
        return []
    return [
        Choice("--encoder", "resnet18", f"random weights and images of {size} pixels"),
        Choice("--small-stem", True, "without stride and pooling, which lose small images' detail"),
    ]


def _with_encoder(config: ClassificationConfig, choices: list[Choice]) -> ClassificationConfig:
    values = {choice.flag.removeprefix("--").replace("-", "_"): choice.value for choice in choices}
    return replace(config, encoder=replace(config.encoder, **values))


def _fitting(facts: Facts, random: bool) -> int:
    most = SIZES[0] if facts.gpu else SMALL if random else 128
    return next((size for size in SIZES if size <= min(facts.side, most)), SIZES[-1])


def _size(config: ClassificationConfig, facts: Facts, seen: Seen | None) -> Choice:
    if config.views.image_size:
        return Choice("--image-size", config.views.image_size, "as given")
    if seen is None:
        machine = "" if facts.gpu or facts.side < SMALL else f"; a CPU is too slow for more than {SMALL}"
        return Choice(
            "--image-size",
            _fitting(facts, random=True),
            f"half of the images have {facts.side} pixels or more across{machine}",
        )
    if facts.gpu or seen.fixed or seen.image_size <= 128:
        return Choice("--image-size", seen.image_size, "what the given weights were trained at; their stem stays")
    return Choice("--image-size", 128, f"the given weights were trained at {seen.image_size}: a CPU is slow at that")


def _normalisation(config: ClassificationConfig, size: int, seen: Seen | None) -> str:
    if config.views.normalisation != "auto":
        return written(normalisation_of(config.views.normalisation))
    if seen is not None:
        return seen.normalisation
    return "cifar" if size <= SMALL else "imagenet"


def _neighbours(
    config: ClassificationConfig, facts: Facts, choices: list[Choice]
) -> tuple[ClassificationConfig, list[Choice]]:
    k = config.model.k or min(200, facts.smallest)
    reason = f"200, and no more than the {facts.smallest} images of the smallest class"
    model = replace(config.model, k=k)
    training = replace(config.training, iterations=config.training.iterations or 1)  # of which none is taken
    return replace(config, model=model, training=training), [*choices, Choice("--k", k, reason)]


def _schedule(
    config: ClassificationConfig, facts: Facts, given: bool, batch_open: bool
) -> tuple[ClassificationSchedule, list[Choice]]:
    """Batch, learning rate, length, falls, warm-up."""
    training, own = config.training, config.recipe == "own"
    linear = config.model.protocol == "linear"
    choices = []
    if batch_open and (own or linear):
        choices.append(_batch(facts, linear))
    batch = choices[0].value if choices else training.batch_size
    rate, why = _rate(config, given)
    lr = float(f"{rate * batch / 256:.3g}")
    choices.append(Choice("--lr", lr, why + ("" if batch == 256 else ", in proportion to the batch")))
    epochs, why = _epochs(config, facts, batch, given)
    steps = training.iterations or max(1, round(epochs * facts.images / batch))
    if not training.iterations:
        choices.append(Choice("--iterations", steps, f"{epochs:,} epochs of {facts.images:,} images: {why}"))
    training = replace(training, batch_size=batch, lr=lr, iterations=steps, epochs=epochs)
    if linear:
        training = replace(training, schedule="step", falls=LINEAR_FALLS, weight_decay=0.0)
    elif own and not given and not training.warmup:
        training = replace(training, warmup=min(steps // 10, 200))
        choices.append(Choice("--warmup", training.warmup, "random weights: the first steps are large"))
    if training.schedule == "step" and not training.milestones:
        training = replace(training, milestones=tuple(round(share * steps) for share in training.falls))
        shares = ", ".join(f"{share:.0%}" for share in training.falls)
        choices.append(Choice("--milestones", training.milestones, f"at {shares} of the steps"))
    return training, choices


def _batch(facts: Facts, linear: bool) -> Choice:
    wanted = 256 if linear else 32 if facts.images < 2000 else 64 if facts.images < 20_000 else 128
    batch = min(wanted, 2 ** int(math.log2(facts.images)))
    few = f"{facts.images:,} labelled images: small batches give more steps"
    return Choice("--batch-size", batch, "as published" if batch == 256 else few)


def _rate(config: ClassificationConfig, given: bool) -> tuple[float, str]:
    """The learning rate for 256 images, and where it is from."""
    if config.model.protocol == "linear":
        return LINEAR, "30 for 256 (section 4.1)"
    if config.recipe == "own":
        value = GIVEN if given else SCRATCH
        start = "given weights: small steps keep what they know" if given else "random weights"
        return value, f"{start}: {value} for 256 (appendix A.7)"
    published = CLASSIFICATION[config.recipe].config.training.lr
    if given or config.recipe not in SCRATCH_LR:
        return published, f"{published} for 256, as published"
    return SCRATCH_LR[config.recipe], f"{SCRATCH_LR[config.recipe]} for 256, as published from scratch"


def _epochs(config: ClassificationConfig, facts: Facts, batch: int, given: bool) -> tuple[int, str]:
    """Passes over the labelled images, and why so many."""
    training = config.training
    if training.epochs:
        return training.epochs, "as given" if config.recipe == "own" else "as published"
    steps_an_epoch = facts.images / batch
    if config.model.protocol == "linear":
        return max(100, math.ceil(LINEAR_STEPS / steps_an_epoch)), "100 (section 4.1), and at least 1,000 steps"
    least, most = (500, 3000) if given else (1000, 6000)
    if facts.gpu:
        most *= 10
    wanted = 30 if given else 100
    epochs = math.ceil(min(max(wanted * steps_an_epoch, least), most) / steps_an_epoch)
    start = "given weights" if given else "random weights need longer"
    return max(epochs, 1), f"{start}: {wanted}, at least {least:,} and at most {most:,} steps"
