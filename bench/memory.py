"""Peak memory of a training step: of every recipe, and as K, the batch and the views' size grow, beside plain PyTorch.

    python -m bench.memory [--only recipes K batch size] [--device auto] [--out bench/results/memory-cpu.json]

Plain PyTorch is Algorithm 1 as one writes it first: the N x K logits whole, the queue copied in each step. Each
measurement is two steps in a process of its own: its peak, less what a process with PyTorch and this program imported
takes (CPU), or the allocator's (GPU). Views are random numbers; images that are cached, and workers, come on top.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.gpu import context_of
from bench.gpu_sides import Sizes, Step, ours, plain
from bench.side_by_side import Row
from moco.data import InMemory, Source
from moco.runs.config import Config
from moco.runs.folder import Run
from moco.runs.options import with_options
from moco.runs.recipes import RECIPES, get_recipe
from moco.runtime.device import Device, choose_device
from moco.runtime.errors import UserError
from moco.training import Pretraining

STEPS = 2
SIDES = ("ours", "plain PyTorch")
BASE = {"encoder": "tiny", "size": 32, "batch": 256, "queue": 65536}
GROWING = {
    "K": [{**BASE, "queue": 2**power} for power in (12, 16, 18, 20)],
    "batch": [{**BASE, "batch": batch} for batch in (64, 256, 1024)],
    "size": [{**BASE, "encoder": "resnet18", "batch": 32, "size": size} for size in (64, 128, 224)],
}
"""What grows, and the settings; the rest as in `BASE`."""
A_RANK = 32
"""Images on a rank of the recipes for large images: 256 on 8 GPUs, as published."""


def recipe_step(name: str, device: Device) -> Step:
    """A step of a recipe, of all of its images if they are small, of a rank's if they are large."""
    config: Config = get_recipe(name).config
    side, batch = config.views.image_size, config.training.batch_size
    if side > 96:
        batch = A_RANK
        config = with_options(config, batch_size=batch)
    source = Source(InMemory(torch.zeros(batch, 3, 8, 8, dtype=torch.uint8)), None, None)
    run = Pretraining(config, source, Run(Path()), device)  # a run that is not written

    def take() -> int:
        shape = (batch, 3, side, side)
        views = [torch.randn(shape, device=device.device) for _ in range(run.mechanism.num_views)]
        run.update(*[view.to(device.dtype, memory_format=device.memory_format) for view in views])
        return batch

    return Step(take)


def side_step(side: str, settings: dict[str, Any], device: Device) -> Step:
    sizes = Sizes(**settings, small_encoder="", small_size=0, small_batch=0, small_queue=0)
    if side == "ours":
        return ours(sizes, device.device)
    return plain(sizes, device.device, fair=device.bf16)


def measured(wanted: dict[str, Any], device: Device) -> Row:
    """Two steps of a recipe, or of a side with its settings: peak memory in MB."""
    device.reset_peak()
    before = 0.0 if device.is_gpu else device.peak_mb()
    if "recipe" in wanted:
        step = recipe_step(wanted["recipe"], device)
    else:
        step = side_step(wanted["side"], wanted["settings"], device)
    images = [step.take() for _ in range(STEPS)]
    return {**wanted, "images": images[0], "mb": device.peak_mb() - before, "imported_mb": before}


def in_process(wanted: dict[str, Any], device: str) -> Row:
    command = [sys.executable, "-m", "bench.memory", "--one", json.dumps(wanted), "--device", device]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = result.stderr.strip().rpartition("\n")[2] or f"ended by signal {-result.returncode}"
        return {**wanted, "failed": last}
    row: Row = json.loads(result.stdout.splitlines()[-1])
    return row


def wanted_of(only: list[str]) -> Iterator[dict[str, Any]]:
    if "recipes" in only:
        yield from ({"what": "recipes", "recipe": name} for name in RECIPES)
    for what, rows in GROWING.items():
        if what in only:
            yield from ({"what": what, "side": side, "settings": settings} for settings in rows for side in SIDES)


def in_words(settings: dict[str, Any]) -> str:
    stem = " with the small stem" if settings["size"] <= 96 and settings["encoder"] != "tiny" else ""
    return "{encoder}{stem}, {size} pixels, batch {batch}, K {queue:,}".format(stem=stem, **settings)


def markdown(rows: list[Row]) -> list[str]:
    """The tables: of the recipes, and of what grows."""
    lines = []
    if recipes := [row for row in rows if row["what"] == "recipes"]:
        lines += ["| recipe | images a step | peak MB |", "| --- | --- | --- |"]
        lines += [f"| `{row['recipe']}` | {row.get('images', '')} | {_cell(row)} |" for row in recipes]
    if grown := [row for row in rows if row["what"] != "recipes"]:
        lines += ["", "| grows | setting | peak MB, ours | plain PyTorch |", "| --- | --- | --- | --- |"]
        for ours, plain in zip(grown[::2], grown[1::2], strict=True):
            lines.append(f"| {ours['what']} | {in_words(ours['settings'])} | {_cell(ours)} | {_cell(plain)} |")
    return lines


def _cell(row: Row) -> str:
    return row["failed"] if "failed" in row else f"{row['mb']:,.0f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=["recipes", *GROWING], default=["recipes", *GROWING])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="a JSON file of the results")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
    except UserError as error:
        sys.exit(f"bench.memory: {error}")
    if options.one:
        print(json.dumps(measured(options.one, device)))
        return
    rows = []
    for wanted in wanted_of(options.only):
        rows.append(in_process(wanted, options.device))
        name = wanted.get("recipe") or f"{in_words(wanted['settings'])}: {wanted['side']}"
        print(f"{name}: {_cell(rows[-1])}", file=sys.stderr, flush=True)
    print("\n".join(markdown(rows)))
    if options.out:
        command = shlex.join(["python", "-m", "bench.memory", *(sys.argv[1:] if arguments is None else arguments)])
        context = context_of(device.device, command)
        options.out.write_text(json.dumps({**context, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
