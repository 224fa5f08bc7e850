"""What a difference to torchvision's detectors costs in training, on drawn images, one difference at a time.

    python -m bench.trained_differences START [--structure FPN|C4] [--seeds 0 1 2] [--only NAME ...] [--out FOLDER]

START is a pre-trained run, as `moco reproduce transfer --scale cpu` leaves it (runs/reproduce/transfer-cpu/moco),
random, or any weights of its encoder. The setting is that command's: 100 labelled images, 1,000 steps of 4 images. A
run that has results is not trained again. `bench.differences` measures what shows without training.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco.reproduce.transfer import drawn
from moco.runs.options import with_options
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.transfer.config import TransferCompute
from moco.transfer.detection.detector import Detector
from moco.transfer.loop import train
from moco.transfer.normalisation import normalisation_of_start, written
from moco.transfer.run import DetectionRun
from moco.transfer.start import encoder_of
from moco.transfer.tasks import open_task
from moco.transfer.trainer import Trainer


def frozen_batch_norm(detector: Detector) -> None:
    """The encoder's BN keeps its statistics and weights; its stem and first stage are not trained either."""
    for module in detector.encoder.modules():
        if isinstance(module, _BatchNorm):
            module.eval().requires_grad_(False)
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,assignment,misc]
    for stage in (detector.encoder.conv1, detector.encoder.layer1):
        stage.requires_grad_(False)


def without_new_norm(detector: Detector) -> None:
    """No BN in what is not the encoder: after conv5 (C4), in FPN's layers and heads."""
    own = [name for name, module in detector.named_modules() if isinstance(module, _BatchNorm)]
    for name in own:
        if not name.startswith("encoder."):
            detector.set_submodule(name, nn.Identity())


def started_as_any_linear(detector: Detector) -> None:
    """The last layers of the box head, not near 0."""
    for module in detector.box_predictor.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


FROZEN = "frozen BN, three stages trained"
"""Whose statistics cannot be computed anew."""
DIFFERENCES: dict[str, Callable[[Detector], object]] = {
    "none": bool,
    FROZEN: frozen_batch_norm,
    "no BN in the new layers": without_new_norm,
    "the box head starts as any nn.Linear": started_as_any_linear,
}
"""What is done to a detector before it is trained."""
RUNNING = "running statistics, not computed anew"
"""Of the run without a difference: what its evaluation would be without precise BN."""


def aps_of(name: str, structure: str, start: str, seed: int, out: Path) -> tuple[float, float]:
    """AP in per cent of the run of one difference, with BN's statistics computed anew and as training left them.

    It is trained if it has no results yet.
    """
    setting = next(setting for setting in drawn("cpu") if setting.name == structure)
    anew: Any = replace(
        setting.config,
        encoder=encoder_of(start, setting.config.encoder),
        data=replace(setting.config.data, labels="100"),
        training=replace(setting.config.training, seed=seed),
        compute=TransferCompute("cpu", "fp32", workers=0),
    )
    anew = with_options(anew, normalisation=written(normalisation_of_start(start)))
    config, device = with_options(anew, precise_bn=0), choose_device("cpu", "fp32")
    run = DetectionRun(out / f"{structure}-{name.replace(' ', '-').replace(',', '')}-{seed}")
    again = run.path / "precise-bn.json"
    if not again.exists():
        task: Any = open_task(config)
        DIFFERENCES[name](task.model)
        try:
            train(config, task, DetectionRun.create(run.path, config), device)
        except UserError as error:  # its loss is no longer finite
            print(f"{name}, seed {seed}: {error}", flush=True)
            again.write_text(json.dumps({"AP": math.nan}))
            return math.nan, math.nan
        task = open_task(anew)
        DIFFERENCES[name](task.model)
        trainer = Trainer(anew, task, run, device)
        trainer.load()
        again.write_text(json.dumps({"AP": trainer.evaluate().numbers["AP"]}))
    precise = float(json.loads(again.read_text())["AP"])
    running = math.nan if math.isnan(precise) else json.loads((run.path / "results.json").read_text())["numbers"]["AP"]
    return precise, float(running)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.trained_differences", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("start")
    parser.add_argument("--structure", choices=["FPN", "C4"], default="FPN")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=DIFFERENCES, default=list(DIFFERENCES))
    parser.add_argument("--out", type=Path, default=Path("runs/trained-differences"))
    options = parser.parse_args()
    try:
        report(options)
    except UserError as error:
        sys.exit(f"bench.trained_differences: {error}")


def report(options: argparse.Namespace) -> None:
    """Trains what has no results yet, and prints the table."""
    found: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name in options.only:
            precise, running = aps_of(name, options.structure, options.start, seed, options.out)
            found.setdefault(name, []).append(running if name == FROZEN else precise)
            if name == "none":
                found.setdefault(RUNNING, []).append(running)
            print(f"{name}, seed {seed}: AP {precise:.1f}, with running statistics {running:.1f}", flush=True)
    print("| torchvision's way | AP |\n| --- | --- |")
    for name, values in found.items():
        learned = [value for value in values if not math.isnan(value)]
        words = ", ".join(f"{value:.1f}" for value in learned) or "none"
        mean = f"{statistics.mean(learned):.1f}" if len(learned) == len(values) else "some diverged"
        deviation = f" ± {statistics.stdev(learned):.1f}" if len(learned) == len(values) > 1 else ""
        print(f"| {name} | {mean}{deviation} ({words}) |")


if __name__ == "__main__":
    main()
