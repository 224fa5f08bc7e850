"""moco pretrain and moco demo."""

import shlex
import time
from itertools import count
from pathlib import Path

from moco.commands.common import computing, say
from moco.config import Config, check
from moco.contrast.ranks import rank, world_size
from moco.data import InMemory, Source, source_of
from moco.device import Device
from moco.encoders import build_encoder
from moco.evaluation import Features, knn_predict
from moco.recipes import RECIPES
from moco.report import accuracy_table, draw_curves, draw_views
from moco.run import Run, read_lines
from moco.training import Stopped, start_logging
from moco.training import pretrain as train
from moco.views import Views, get_pretext


def pretrain(config: Config, folder: Path, resume: bool) -> Run:
    """Trains a run in its folder; told to stop, leaves by SystemExit with the signal's usual exit code."""
    get_pretext(config.views.views)
    with computing(config.compute) as device:
        check(config, world_size())
        # What is wrong with its name is said first.
        build_encoder(config.encoder.encoder, config.encoder.small_stem, config.encoder.freeze_patches)
        source = source_of(config)
        check(config, world_size(), len(source.train))
        run = Run.open(folder) if resume else Run.create(folder, config)
        start_logging(run, rank() == 0)
        if not resume and rank() == 0:
            draw_views(
                source.train,
                Views(config.views.views, config.views.image_size, config.training.seed),
                folder / "views.png",
            )
        try:
            with run.locked():
                train(config, source, run, device, resume)
        except Stopped as stopped:
            say(f"stopped after step {stopped.step}; continue it by:\n  {_command(config, folder)} --resume")
            raise SystemExit(128 + stopped.signal_number) from None
        if rank() == 0:
            draw_curves(run)
        say(f"done: {folder} holds the checkpoints, metrics.jsonl, curves.png, views.png and tensorboard/")
        return run


def _command(config: Config, folder: Path) -> str:
    out = [] if folder == Path("runs") / Path(config.recipe).stem else ["--out", str(folder)]
    return shlex.join(["moco", "pretrain", config.recipe, *out])


def demo(out: Path | None) -> None:
    """Pre-trains on the embedded data set and prints the gain."""
    free = (Path("runs") / (f"demo-{i}" if i > 1 else "demo") for i in count(1))
    folder = out or next(path for path in free if not path.exists())
    config = RECIPES["shapes-cpu"].config
    start = time.monotonic()
    run = pretrain(config, folder, resume=False)
    with computing(config.compute) as device:
        source = source_of(config)
        measured = _measured(run)
        rows = [
            ("raw pixels", _raw_pixels(source, config, device), None),
            ("random encoder", measured[0], None),
            ("pre-trained encoder", measured[-1], None),
        ]
        say(accuracy_table(f"kNN accuracy on {len(source.test or [])} test images of 10 classes (chance: 10 %)", rows))
        say(f"{time.monotonic() - start:.0f} s in all; the run's folder is {folder}: look at views.png and curves.png")


def _raw_pixels(source: Source, config: Config, device: Device) -> float:
    """kNN accuracy of the pixels themselves."""
    bank, test = (
        Features(images.images.flatten(1).float() / 255, images.labels)
        for images in (source.train, source.test)
        if isinstance(images, InMemory) and images.labels is not None
    )
    options = config.log
    predicted = knn_predict(
        bank, test.values, source.num_classes, options.knn_k, options.knn_temperature, device.device
    )
    return (predicted == test.labels).double().mean().item()


def _measured(run: Run) -> list[float]:
    lines = read_lines(run.metrics)
    return [line["knn"] for line in lines if "knn" in line]
