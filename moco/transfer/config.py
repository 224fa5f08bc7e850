"""The configuration of a transfer run, whatever its task: every option with its range."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import tyro

from moco.runs.config import BaseCompute, Encoder
from moco.runs.options import Above0, AtLeast0, AtLeast1, Finite, Range, Share, check_ranges
from moco.runtime.errors import UserError


@dataclass(frozen=True)
class LabelledData:
    """Where annotated images come from."""

    source: Annotated[str, tyro.conf.arg(name="data", metavar="SOURCE")] = "shapes"
    """The set of annotated images (the command's --help without a recipe lists the kinds)."""
    labels: str = "all"
    """Train on some of the annotated images alone, chosen by the seed: all, a number (50) or a share (10%)."""
    size: Annotated[int, Range(32)] = 128
    """Height and width in pixels of the images that are drawn (--data shapes)."""
    max_bad: Annotated[float, Share] = 0.01
    """Stop when more than this share of the training images cannot be read."""


@dataclass(frozen=True)
class Schedule:
    """SGD with a learning rate that falls. The number of images a step is the batch of all ranks together."""

    iterations: Annotated[int, AtLeast1] = 24_000
    """Steps in all."""
    batch_size: Annotated[int, AtLeast1] = 16
    """Images a step, over all ranks. With another than the recipe's, learning rate and length follow it (the linear
    rule), unless they are given too."""
    lr: Annotated[float, Above0] = 0.02
    """Peak learning rate."""
    milestones: Annotated[tuple[int, ...], AtLeast0] = (18_000, 22_000)
    """Steps at which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Above0] = 0.1
    """Factor at a milestone."""
    schedule: Literal["step", "cosine"] = "step"
    """How the learning rate falls: step: times gamma at each milestone; cosine: to 0, whatever the milestones."""
    warmup: Annotated[int, AtLeast0] = 100
    """Steps in which the learning rate rises linearly from a thousandth."""
    sgd_momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Finite] = 1e-4
    """Weight decay, on all but the parameters of normalisation layers."""
    checkpointing: Literal["auto", "yes", "no"] = "auto"
    """Compute activations again in backward rather than keep them, which saves memory and changes no result; auto:
    where a step does not fit into the memory of one GPU without it; several ranks never switch it on by themselves."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything random: new layers, which images have labels, their order, scales, flips, samples."""


@dataclass(frozen=True)
class TransferCompute(BaseCompute):
    """How a run is computed. Precision changes its results by rounding only, all else does not."""


@dataclass(frozen=True)
class TransferLog:
    """What is logged, evaluated and saved during training."""

    log_every: Annotated[int, AtLeast1] = 20
    """Steps between two lines of metrics."""
    evaluate_every: Annotated[int, AtLeast0] = 0
    """Steps between two evaluations; 0: only one, at the end."""
    checkpoint_minutes: Annotated[float, AtLeast0] = 5.0
    """Minutes between two checkpoints; there is one at the end, and when the run is stopped."""
    keep_checkpoints: Annotated[int, AtLeast1] = 2
    """How many checkpoints are kept, the last ones."""


@dataclass(frozen=True)
class TransferConfig:
    """What the loop needs of any task. Each task derives its own, with more groups and options."""

    task: Annotated[str, tyro.conf.Suppress] = ""
    recipe: Annotated[str, tyro.conf.Suppress] = ""
    data: LabelledData = field(default_factory=LabelledData)
    encoder: Encoder = field(default_factory=lambda: Encoder("resnet50"))
    training: Schedule = field(default_factory=Schedule)
    compute: TransferCompute = field(default_factory=TransferCompute)
    log: TransferLog = field(default_factory=TransferLog)


AUTO = (("compute", "precision"), ("model", "normalisation"))
"""Options, by group, whose `auto` is decided when a run is started, and stored: the numbers depend on them."""
MAY_CHANGE = {"workers", "device", "checkpointing", *(f.name for f in fields(TransferLog))}
"""Options that may be others when a run is continued: the numbers do not depend on them."""


def as_before(config: TransferConfig, before: TransferConfig) -> TransferConfig:
    """A configuration to continue a run with: what was on `auto` is as it was decided when the run was started."""
    for group, name in AUTO:
        own, theirs = getattr(config, group, None), getattr(before, group, None)
        if getattr(own, name, None) == "auto":
            config = replace(config, **{group: replace(own, **{name: getattr(theirs, name)})})  # type: ignore[arg-type,type-var]
    return config


def check(config: TransferConfig, ranks: int = 1) -> None:
    """Raises UserError, naming the option, for the first number out of its range, or that does not fit the others."""
    check_ranges(config)
    number_of(config.data.labels, 1)
    if config.training.batch_size % ranks:
        raise UserError(f"--batch-size {config.training.batch_size}: is not a multiple of the {ranks} ranks")


def number_of(labels: str, images: int) -> int:
    """How many of so many images `--labels` names, at least 1. Raises UserError where it names none."""
    try:
        if labels == "all":
            return images
        wanted = round(float(labels[:-1]) / 100 * images) if labels.endswith("%") else int(labels)
        within = not labels.endswith("%") or 0 < float(labels[:-1]) <= 100
    except (ValueError, OverflowError):  # inf%
        wanted, within = 0, False
    if not within or (wanted < 1 and not labels.endswith("%")):
        raise UserError(f"--labels {labels}: give all, a number of images (50) or a share of them (10%)")
    return max(wanted, 1)


def scaled(training: Schedule, recipe: Schedule, named: Collection[str] = ()) -> tuple[Schedule, str]:
    """The schedule for another batch or length than the recipe's.

    With another batch the learning rate is in proportion to it, and the steps inversely (Goyal et al. 2017, and
    Detectron2's reference world size); milestones are at the recipe's shares of the length. What else differs from the
    recipe was given by the user, and stays.

    Args:
        named: options that the user gave, which stay also where they are the recipe's.

    Returns the schedule, and in words what was changed, "" for nothing.
    """
    ratio = training.batch_size / recipe.batch_size
    given = training.iterations != recipe.iterations or "iterations" in named
    length = training.iterations if given else _steps(recipe.iterations, ratio)
    wanted: dict[str, Any] = {
        "lr": recipe.lr * ratio,
        "iterations": length,
        "milestones": tuple(_steps(step, recipe.iterations / length) for step in recipe.milestones),
        "warmup": _steps(recipe.warmup, ratio) if recipe.warmup else 0,
    }
    changed = {
        name: value
        for name, value in wanted.items()
        if name not in named and value != getattr(training, name) == getattr(recipe, name)
    }
    if not changed:
        return training, ""
    words = ", ".join(f"{name} {getattr(recipe, name)} -> {_short(value)}" for name, value in changed.items())
    why = [f"batch {training.batch_size} for the recipe's {recipe.batch_size}"] if ratio != 1 else []
    why += [f"{length} steps for the recipe's {recipe.iterations}"] if length != recipe.iterations and given else []
    about = f"{' and '.join(why)}, so{' by the linear rule' if ratio != 1 else ''}: {words}"
    return replace(training, **changed), about


def _steps(count: int, ratio: float) -> int:
    return max(1, round(count / ratio))


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
