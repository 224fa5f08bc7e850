"""moco demo: pre-training on drawn images, and what it gains."""

import shlex
import time
from itertools import count
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image

from moco.cli.commands.common import computing, print_on_main
from moco.cli.commands.pretrain import pretrain
from moco.cli.options import Demo
from moco.data import Source, source_of
from moco.data.sources.shapes import CLASSES, draw
from moco.evaluation import Features, knn_predict
from moco.report import accuracy_table
from moco.runs.config import Config
from moco.runs.folder import Run, read_lines
from moco.runs.recipes import RECIPES
from moco.runtime.device import Device
from moco.runtime.ranks import on_main
from moco.training import estimate

_AROUND = 10
"""Seconds that the start, the pictures and the accuracy of raw pixels take."""
_USE = """
Now use it. shapes-cpu is an encoder that comes along; {run} in its place is the one just trained:
  moco search shapes-cpu {run}/images --among shapes --out {run}/found.png
  moco embed shapes-cpu --data shapes --out {run}/features.npz
  moco finetune shapes-cpu --data shapes --labels 100 --protocol linear --cached --out {run}/classifier
  moco predict {run}/classifier {run}/images --out {run}/predictions.csv"""


def run(options: Demo) -> None:
    """Pre-trains on the embedded data set and prints the gain."""
    free = (Path("runs") / (f"demo-{i}" if i > 1 else "demo") for i in count(1))
    folder = options.out or next(path for path in free if not path.exists())
    config = RECIPES["shapes-cpu"].config
    start = time.monotonic()
    with computing(config.compute) as device:
        cost = estimate(config, source_of(config), device)
        print_on_main(f"about {cost.seconds + _AROUND:.0f} s on this machine, {device.device}: {cost.steps:,} steps")
    done = pretrain(config, folder)
    with computing(config.compute) as device:
        source = source_of(config)
        measured = _measured(done)
        rows = [
            ("pixels", _raw_pixels(source, config, device), None),
            ("pixels, centred", _raw_pixels(source, config, device, centre=0.5), None),
            ("random encoder", measured[0], None),
            ("pre-trained encoder", measured[-1], None),
        ]
        print_on_main(
            accuracy_table(f"kNN accuracy on {len(source.test or [])} test images of 10 classes (chance: 10 %)", rows)
        )
        print_on_main(f"{time.monotonic() - start:.0f} s in all; views.png and curves.png in {folder} show the run")
        on_main(lambda: _draw_queries(folder / "images", config.views.image_size))
        print_on_main(_USE.format(run=shlex.quote(str(folder))))


def _draw_queries(folder: Path, size: int) -> None:
    """Ten images that are not in the data set, as files named by their classes: something to use an encoder on."""
    drawn = draw(torch.arange(10), size, seed=1)
    folder.mkdir(exist_ok=True)
    for number, (image, label) in enumerate(zip(drawn.images, drawn.labels.tolist(), strict=True)):
        to_pil_image(image).save(folder / f"{number}-{CLASSES[label]}.png")


def _raw_pixels(source: Source, config: Config, device: Device, centre: float = 0.0) -> float:
    """kNN accuracy of the pixels themselves, from 0 to 1, less `centre`."""
    bank, test = (
        Features(torch.stack([images.pixels(i) for i in range(len(images))]).flatten(1) / 255 - centre, images.labels)
        for images in (source.train, source.test)
        if images is not None and images.labels is not None
    )
    options = config.log
    predicted = knn_predict(
        bank, test.values, source.num_classes, options.knn_k, options.knn_temperature, device.device
    )
    return (predicted == test.labels).double().mean().item()


def _measured(run: Run) -> list[float]:
    lines = read_lines(run.metrics)
    return [line["knn"] for line in lines if "knn" in line]
