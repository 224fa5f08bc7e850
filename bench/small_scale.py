"""The published results on small images, and the shortest time to 90 %, on one GPU: resumable, a piece at a time.

    python -m bench.small_scale [--data cifar10:data] [--minutes 8.5] [--out runs/small-scale] [--page bench/results]

The fastest way to run a step (recorded, eager) is found by trying. Then run, with 3 seeds each, lightly's three
settings on CIFAR-10 (kNN 83.8, 84.7, 89.9 as published) and `cifar10-speed`; and with one seed `cifar10-speed` with
each of its ingredients exchanged, to measure what each contributes. After the minutes given it stops with a checkpoint,
and the same command continues. --quick runs the same at tiny sizes, on a CPU too; --only NAME runs speed or published
alone.
"""

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.gpu import VARIANTS, context_of, variants
from moco.data import source_of
from moco.reproduce import EXPERIMENTS, Experiment, Job, plan, results_of, run_missing, write_page
from moco.reproduce.experiment import Cell, Changes, Claim, Scale
from moco.runs.config import Compute, Linear
from moco.runs.options import with_options
from moco.runs.recipes.recipes import RECIPES
from moco.runtime.errors import UserError
from moco.runtime.signals import Stopped
from moco.training import start_logging
from moco.training.build import device_of
from moco.training.estimate import estimate

ROOT = Path(__file__).parents[1]
console = Console(highlight=False)


def published(scale: Scale, changes: Changes) -> list[Cell]:
    """lightly's rows."""
    return EXPERIMENTS["small-scale"].cells("gpu", changes)[:3]


def speed(scale: Scale, changes: Changes) -> list[Cell]:
    """The speed recipe, and the same with one ingredient exchanged."""
    whole = RECIPES["cifar10-speed"].config
    exchanged: dict[str, dict[str, Any]] = {
        "as it is": {},
        "symmetric, half the epochs": {"symmetric": True, "epochs": whole.training.epochs // 2},
        "batch 128": {"batch_size": 128, "lr": 0.06, "bn_group": 16},
        "K 4096": {"queue_size": 4096},
        "temperature 0.2": {"temperature": 0.2},
        "m 0.999": {"key_momentum": 0.999},
        "no warm-up": {"warmup": 0.0},
        "BN groups of 32": {"bn_group": 32},
        "half the epochs": {"epochs": whole.training.epochs // 2},
    }
    return [
        Cell("cifar10-speed", name, with_options(whole, **(options | changes))) for name, options in exchanged.items()
    ]


def _speed_claims(scale: Scale) -> list[Claim]:
    whole = ("cifar10-speed", "as it is")
    return [
        Claim(f"as it is above {cell.x}", whole, (cell.series, cell.x))
        for cell in speed(scale, {})
        if cell.x != whole[1]
    ]


SPEED = Experiment(
    "cifar10-speed",
    "CIFAR-10 to 90 % in the shortest time",
    "What each ingredient of `cifar10-speed` gives: one exchanged at a time, a seed each; as it is with three.",
    "ingredient exchanged",
    speed,
    _speed_claims,
    measures=("linear", "knn"),
)
PUBLISHED_ROWS = replace(EXPERIMENTS["small-scale"], grid=published)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.small_scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10:data")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--out", type=Path, default=Path("runs/small-scale"))
    parser.add_argument("--page", type=Path, help="the folder of the tables; bench/results")
    parser.add_argument("--only", choices=["published", "speed"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        parser.error("there is no GPU here: --quick shows that it runs")
    deadline = time.monotonic() + 60 * options.minutes
    start_logging(None, True)
    try:
        _run(options, deadline, shlex.join(["python", "-m", "bench.small_scale", *arguments]))
    except UserError as error:
        sys.exit(f"bench.small_scale: {error}")


def _run(options: argparse.Namespace, deadline: float, command: str) -> None:
    compute = fastest(options)
    page = options.page or (options.out if options.quick else ROOT / "bench/results")
    page.mkdir(parents=True, exist_ok=True)
    todo = {"published": (PUBLISHED_ROWS, Linear(cached=True)), "speed": (SPEED, Linear())}
    for name, (experiment, linear) in todo.items():
        if options.only not in (None, name):
            continue
        jobs = jobs_of(experiment, options, compute)
        stopped = False
        try:
            run_missing(jobs, device_of(compute), linear, deadline)
        except Stopped:
            stopped = True
        context = _context(command, experiment, jobs, compute)
        console.print(f"{sum(map(len, results_of(jobs).values()))} of {len(jobs)} runs are done; written to ", end="")
        console.print(write_page(experiment, jobs, experiment.claims("gpu"), context, page, f"{experiment.name}-gpu"))
        if stopped:
            console.print("the time is up: the same command continues")
            return


def jobs_of(experiment: Experiment, options: argparse.Namespace, compute: Compute) -> list[Job]:
    """Three seeds of each setting; of an exchanged ingredient one."""
    cells = experiment.cells("gpu", {"source": options.data})
    if options.quick:
        tiny = {"encoder": "tiny", "small_stem": False, "epochs": 1, "warmup": 0.0, "batch_size": 32}
        tiny |= {"queue_size": 64, "bn_group": 16, "knn_every": 1, "knn_k": 10, "lr": 0.03}
        cells = [replace(cell, config=with_options(cell.config, **tiny)) for cell in cells]
    jobs = plan(cells, 3, options.out / experiment.name, compute)
    return [job for job in jobs if job.seed == 0 or job.cell.x in ("as it is", "batch 128", "batch 512")][
        : 2 if options.quick else None
    ]


def fastest(options: argparse.Namespace) -> Compute:
    """The options under which a step of lightly's first setting takes the least time here; found once for a folder."""
    path = options.out / "fastest.json"
    if path.is_file():
        return Compute(**json.loads(path.read_text()))
    times: dict[str, float] = {}
    for name, flags in variants(torch.cuda.is_available()).items():
        compute = Compute(**flags)
        (job, *_) = jobs_of(PUBLISHED_ROWS, options, compute)
        try:
            times[name] = estimate(job.config, source_of(job.config), device_of(compute)).seconds
            console.print(f"{name}: a run would take {times[name]:,.0f} s")
        except (RuntimeError, ImportError) as error:
            console.print(f"{name}: is not available here: {str(error).splitlines()[0]}", markup=False)
    if not times:
        raise UserError("no step could be taken on this machine")
    flags = VARIANTS[min(times, key=times.__getitem__)]
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(flags) + "\n")
    return Compute(**flags)


def _context(command: str, experiment: Experiment, jobs: list[Job], compute: Compute) -> dict[str, Any]:
    device = device_of(compute)
    about = context_of(device.device, command)
    flags = [name for name, on in (("compiled", compute.compile), ("recorded", compute.cuda_graph)) if on]
    return {
        **about,
        "experiment": experiment.name,
        "scale": "gpu",
        "machine": f"{about['device']}, {'bf16' if device.bf16 else 'fp32'}",
        "runs": len(jobs),
        "setting": f"The step: {' and '.join(flags) or 'eager'}.",
    }


if __name__ == "__main__":
    main()
