"""The paper's transfer tables (section 4.2): detectors and segmentation from several starts, over the labels."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from moco.data import source_of
from moco.data.sources.npz import SHAPES_TRAIN
from moco.runs.config import Compute, Config
from moco.runs.folder import Run
from moco.runs.options import parse_option, with_options
from moco.runs.recipes.recipes import RECIPES
from moco.runtime.errors import UserError, did_you_mean
from moco.runtime.ranks import on_main
from moco.training import pretrain
from moco.training.build import device_of
from moco.transfer.classification.config import (
    ClassificationConfig,
    ClassificationSchedule,
    ClassifiedData,
    TrainingViews,
)
from moco.transfer.compare import Comparison, compare, numbers_of
from moco.transfer.config import TransferCompute, TransferConfig
from moco.transfer.detection.recipes import DETECTION
from moco.transfer.run import RUNS
from moco.transfer.segmentation.recipes import SEGMENTATION
from moco.transfer.tasks import train_run

log = logging.getLogger("moco")
TransferScale = Literal["cpu", "gpu", "paper"]
PAPER = ("voc-r50-c4", "voc07-r50-c4", "voc-r50-dc5", "coco-r50-c4-2x", "coco-r50-fpn-2x", "voc-fcn", "cityscapes-fcn")
"""The recipes of the tables, with their own data."""


@dataclass(frozen=True)
class Setting:
    """One structure of a scale.

    Attributes:
        name: as the page has it.
        config: of its runs, but for start, labels and seed.
        labels: the numbers of labelled images, as --labels.
    """

    name: str
    config: TransferConfig
    labels: tuple[str, ...]


def settings(
    scale: TransferScale, data: str | None = None, only: Sequence[str] = (), changes: Sequence[str] = ()
) -> list[Setting]:
    """The structures of a scale, those of `only` if it names some.

    Args:
        data: in the place of the settings' own.
        changes: options of all runs, as --set: `iterations=100`; `labels=10,20` are the numbers of labelled images.

    Raises UserError for a name or an option that is none.
    """
    if scale == "paper":
        every = [Setting(name, {**DETECTION, **SEGMENTATION}[name].config, ("all",)) for name in PAPER]
    else:
        every = drawn(scale)
    for name in only:
        if name not in (names := [setting.name for setting in every]):
            raise UserError(f"--only {name}: no such setting{did_you_mean(name, names)}: there are {', '.join(names)}")
    kept = [setting for setting in every if not only or setting.name in only]
    if data is not None:
        changes = [f"data={data}", *changes]
    return [_changed(setting, changes) for setting in kept]


def _changed(setting: Setting, changes: Sequence[str]) -> Setting:
    groups = [type(getattr(setting.config, field.name)) for field in fields(setting.config)]
    for text in changes:
        if text.startswith("labels="):
            setting = replace(setting, labels=tuple(text.removeprefix("labels=").split(",")))
            continue
        name, value = parse_option(text, filter(is_dataclass, groups))
        setting = replace(setting, config=with_options(setting.config, **{name: value}))
    return setting


def drawn(scale: TransferScale) -> list[Setting]:
    """The paper's structures on drawn images; on a CPU narrow, with few regions, and few images to test on."""
    cpu = scale == "cpu"
    side = 96 if cpu else 128
    shared = {
        "source": "shapes",
        "size": side,
        "encoder": pretraining(scale).encoder.encoder,
        "head_width": 0.125 if cpu else 0.5,
        # With 0.01 or 400 steps less no start gets far on a CPU, and starts hardly differ.
        "iterations": 1000 if cpu else 2000,
        "schedule": "cosine",
        "batch_size": 4 if cpu else 16,
        "lr": 0.05,
        "warmup": 100,
        "test_images": 100 if cpu else 1000,
        "log_every": 20,
    }
    detector = shared | {
        "metric": "coco",
        "regions": 16 if cpu else 128,
        "proposals": 50 if cpu else 300,
        "precise_bn": 20 if cpu else 100,
    }
    own, larger = _of_side(side), _of_side(2 * side)
    # Of stride 16, C4 and dilated C5 see an object of the smaller images as two cells.
    c4 = with_options(DETECTION["own-c4"].config, masks=False, **detector | larger)
    dc5 = with_options(c4, structure="dc5", lr=0.02)  # its fully connected layers have no BN
    fpn = with_options(DETECTION["own-fpn"].config, masks=True, **detector | own)
    fcn = with_options(SEGMENTATION["own-fcn"].config, crop=side, **shared)
    few, some, many = ("25", "100", "400") if cpu else ("100", "300", "1000")
    return [
        Setting("C4", c4, (some,)),
        Setting("dilated C5", dc5, (some,)),
        Setting("FPN", fpn, (few, some, many)),
        Setting("FCN", fcn, (some,)),
    ]


def _of_side(side: int) -> dict[str, Any]:
    """The sizes of a detector's images, in pixels."""
    return {"size": side, "sides": tuple(side * eighths // 8 for eighths in (6, 7, 8, 9, 10)), "test_side": side}


def setting_of(wanted: Sequence[Setting], scale: TransferScale | Literal[""]) -> str:
    """The images, the encoder and the length of all runs, in words.

    `scale`: whose pre-trained encoder they start from; "": other starts, which have encoders of their own.
    """
    config = wanted[0].config
    images = "Drawn images" if config.data.source == "shapes" else config.data.source
    encoder = f", {pretraining(scale).encoder.encoder}" if scale else ""
    return f"{images}{encoder}, {config.training.iterations} steps."


def pretraining(scale: TransferScale) -> Config:
    """How the encoder is pre-trained, on drawn images without their labels."""
    cpu = scale == "cpu"
    config = with_options(
        RECIPES["shapes-cpu"].config,
        epochs=40 if cpu else 50,
        optimizer="sgd",
        warmup=1.0,
        batch_size=32,
        bn_group=8,
        knn_every=10,
        monitor_every=0,
        checkpoint_minutes=2.0,
    )
    encoder, side = ("resnet18w0.25", 48) if cpu else ("resnet18", 96)
    return with_options(config, image_size=side, encoder=encoder, small_stem=False)


def pretrained(scale: TransferScale, folder: Path, compute: Compute) -> str:
    """The folder of the pre-trained encoder, which is trained if it is not there. Raises Stopped at a signal."""
    config = replace(pretraining(scale), compute=compute)
    run = Run(folder)
    there = on_main(lambda: run.exists)
    if not there:
        on_main(lambda: Run.create(folder, config) and None)
    on_main(lambda: run.require(config))
    with ExitStack() as held:
        on_main(lambda: held.enter_context(run.locked(wait=15)))
        pretrain(config, source_of(config), run, device_of(compute), resume=there)
    return str(folder)


def supervised(scale: TransferScale) -> ClassificationConfig:
    """How the supervised start is trained: the same encoder, images, steps and batch, with the images' labels."""
    own = pretraining(scale)
    training = own.training
    return ClassificationConfig(
        data=ClassifiedData("shapes"),
        encoder=own.encoder,
        views=TrainingViews(own.views.image_size, min_area=0.5, normalisation="cifar"),
        training=ClassificationSchedule(
            iterations=training.epochs * (SHAPES_TRAIN // training.batch_size),
            batch_size=training.batch_size,
            lr=training.lr,
            schedule="cosine",
            warmup=100,
            weight_decay=training.weight_decay,
        ),
    )


def reproduce_transfer(
    wanted: Sequence[Setting],
    scale: TransferScale,
    out: Path,
    starts: Sequence[str] = (),
    trials: int = 3,
    compute: Compute | None = None,
) -> dict[str, Comparison]:
    """Trains what has no results yet. Returns the results of each structure.

    Args:
        wanted: of `settings`.
        out: the folder of all runs.
        starts: as --compare; none: random weights and, on drawn images, an encoder pre-trained on them without their
            labels, and one trained with these.

    Raises UserError without starts at the paper's scale.
    """
    if not starts and scale == "paper":
        raise UserError("--starts is missing: random, torchvision:resnet50 and the weights to compare")
    compute = compute or Compute()
    own = TransferCompute(compute.device, compute.precision, compute.channels_last, compute.workers)
    if not starts:
        _train(replace(supervised(scale), compute=own), out / "supervised")
        starts = ("random", pretrained(scale, out / "moco", compute), str(out / "supervised"))
    return {
        setting.name: compare(
            replace(setting.config, compute=own),
            starts,
            setting.labels,
            trials,
            out / setting.name.replace(" ", "-"),
            _train,
        )
        for setting in wanted
    }


def _train(config: TransferConfig, folder: Path) -> None:
    """Trains a run that has no results yet, new or continued. Raises Stopped at a signal."""
    if on_main(lambda: numbers_of(folder)) is None:
        train_run(config, folder, continued=on_main(lambda: RUNS[config.task](folder).exists))
