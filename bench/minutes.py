"""Minutes to accuracy: ours beside lightly's benchmark and the released code's Colab settings, on equal images.

    python -m bench.minutes --cifar npz:PATH [--scale quick|long] [--seeds 3] [--only ours lightly colab]
                            [--minutes M] [--out bench/results/minutes-cpu]

Each side is a process of its own, one after the other, with all cores. Its clock starts with the process and runs on
while checkpoints are written; a point of the curve is a checkpoint, at the time that its file was complete. kNN is
evaluated after a side has ended, by one piece of code, so it costs no side anything. The peers' cosine is a function of
the time and ends with it. Ours takes a fixed number of steps: as many as a trial of 30 steps before, which is not
counted, foretells to fit; a second run of ours has a third of the time. Peers run at both batches of --peer-batch; the
best counts. Started again, the command runs what is not in its JSON yet, as long as the commit is the same.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu import context_of
from bench.minutes_page import write_page
from bench.peers import PEERS, STARTED
from bench.side_by_side import Row
from moco.data import Source, source_of
from moco.encoders import build_encoder
from moco.encoders.weights import fill
from moco.evaluation import Trained, evaluate_knn
from moco.runs.config import Config, Data, Encoder, Views
from moco.runs.folder import read_lines
from moco.runs.recipes import get_recipe
from moco.runs.weights import read_weights
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.views.recipes import CIFAR

MINUTES = {"quick": 4.0, "long": 20.0}
TRIAL = 30
K, TAU = 200, 0.1
Run = Callable[[list[str], Path], float]


@dataclass(frozen=True)
class Side:
    """A line of the table.

    Attributes:
        kind: ours, or the peer.
        batch: of a peer.
        share: of the minutes, in which the schedule ends.
    """

    name: str
    kind: str
    batch: int = 0
    share: float = 1.0


def sides_of(options: argparse.Namespace) -> list[Side]:
    sides = [Side("ours", "ours"), Side("ours, a third of the time", "ours", share=1 / 3)]
    sides += [Side(f"{peer}, batch {batch}", peer, batch) for peer in PEERS for batch in options.peer_batch]
    return [side for side in sides if not options.only or side.kind in options.only]


# A process and what it leaves.


def run_process(words: list[str], folder: Path) -> float:
    """Runs `python -m WORDS`, its output in the folder's output.txt; returns when it was started, in s.

    Raises UserError with its last line if it fails.
    """
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w") as output:
        started = time.time()
        environment = {**os.environ, STARTED: repr(started)}
        done = subprocess.run([sys.executable, "-m", *words], stdout=output, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        last = (folder / "output.txt").read_text().strip().rpartition("\n")[2]
        raise UserError(f"{shlex.join(words)}: {last}")
    return started


@dataclass(frozen=True)
class Point:
    """A checkpoint: `seconds` since its process was started."""

    seconds: float
    step: int
    path: Path


def points_of(folder: Path, started: float) -> list[Point]:
    """The checkpoints in the order of their steps, each at the time that its file was complete."""
    files = sorted((folder / "checkpoints").glob("step-*"))
    points = [Point(path.stat().st_mtime - started, int(path.stem.split("-")[1]), path) for path in files]
    if len(points) < 2:
        raise UserError(f"{folder}: the process left no checkpoints from before the first step and after the last")
    return points


def compile_seconds(folder: Path, batch: int) -> float:
    """How much longer the first steps of a compiled run took than as many of the rest, from its timing.jsonl."""
    lines = read_lines(folder / "timing.jsonl")
    if len(lines) < 2:
        return 0.0
    (first, last), done = (lines[0], lines[-1]), lines[0]["step"]
    seconds = [line["step"] * batch / line["images_per_second"] for line in (first, last)]
    return max(0.0, seconds[0] - done * (seconds[1] - seconds[0]) / (last["step"] - done))


# The sides' commands.


def our_words(options: argparse.Namespace, steps: int, minutes: float, seed: int, out: Path) -> list[str]:
    """The recipe in so many steps, with a checkpoint at every point and without kNN on the way."""
    words = ["moco", "pretrain", options.recipe, "--data", options.cifar, "--per-class", options.per_class]
    words += ["--encoder", options.encoder, "--small-stem" if options.small_stem else "--no-small-stem"]
    words += ["--iterations", steps, "--knn-every", 0, "--seed", seed]
    words += ["--checkpoint-minutes", f"{minutes / options.points:.4f}", "--keep-checkpoints", 1000, "--out", out]
    return [str(word) for word in words]


def peer_words(options: argparse.Namespace, side: Side, minutes: float, seed: int, out: Path) -> list[str]:
    words = ["bench.peers", side.kind, "--data", options.cifar, "--per-class", options.per_class]
    words += ["--encoder", options.encoder, *(["--small-stem"] if options.small_stem else [])]
    words += ["--batch", side.batch, "--workers", options.workers, "--minutes", minutes]
    words += ["--points", options.points, "--seed", seed, "--out", out]
    return [str(word) for word in words]


def steps_that_fit(options: argparse.Namespace, run: Run) -> tuple[float, float]:
    """Ours: seconds before the first step, and seconds a step, by a trial."""
    folder = options.runs / f"trial-{time.time_ns()}"
    started = run(our_words(options, TRIAL, 1000.0, 0, folder), folder)
    first, last = points_of(folder, started)
    return first.seconds, (last.seconds - first.seconds) / last.step


def run_side(options: argparse.Namespace, side: Side, seed: int, trial: tuple[float, float], run: Run) -> Row:
    """One run, evaluated after it has ended."""
    minutes = options.minutes * side.share
    folder = options.runs / f"{side.name.replace(', ', '-').replace(' ', '-')}-{seed}-{time.time_ns()}"
    if side.kind == "ours":
        start, step = trial
        steps = max(2, int((60 * minutes - start) / step))
        words, normalisation = our_words(options, steps, minutes, seed, folder), CIFAR
    else:
        words = peer_words(options, side, minutes, seed, folder)
        normalisation = PEERS[side.kind].normalisation
    points = points_of(folder, run(words, folder))
    training = get_recipe(options.recipe).config
    compiled = side.kind == "ours" and training.compute.compile
    return {
        "side": side.name,
        "kind": side.kind,
        "minutes": minutes,
        "seed": seed,
        "command": shlex.join(["python", "-m", *words]),
        "start_seconds": points[0].seconds,
        "compile_seconds": compile_seconds(folder, training.training.batch_size) if compiled else 0.0,
        "steps": points[-1].step,
        "points": [
            {
                "minutes": point.seconds / 60,
                "step": point.step,
                "knn": knn_of(point.path, normalisation, options.encoder, options.small_stem, options.source),
            }
            for point in points
        ],
    }


def knn_of(path: Path, normalisation: Any, encoder: str, small_stem: bool, source: Source) -> float:
    """kNN accuracy in 0..1 of the backbone in a checkpoint, in float32."""
    config = Config(encoder=Encoder(encoder, small_stem), views=Views("cifar", 32))
    module, device = build_encoder(encoder, small_stem), choose_device(precision="fp32")
    fill(module, read_weights(str(path)), normalisation)
    module, centre = Trained(module, config, path.parent, path, normalisation).on(device)
    return evaluate_knn(module, source, centre, device, K, TAU)


def main(arguments: list[str] | None = None, run: Run = run_process) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.minutes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, metavar="SOURCE", help="npz:PATH or cifar10:PATH")
    parser.add_argument("--per-class", type=int, default=2000, help="the first N training images of each class")
    parser.add_argument("--scale", choices=MINUTES, default="quick", help="4 minutes a side, or 20")
    parser.add_argument("--minutes", type=float, help="in place of the scale's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=["ours", *PEERS])
    parser.add_argument("--recipe", default="cifar10-cpu", help="ours")
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--small-stem", action="store_true", help="of a ResNet")
    parser.add_argument("--peer-batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of the peers' loaders")
    parser.add_argument("--points", type=int, default=8, help="points of a curve after the first")
    parser.add_argument("--runs", type=Path, default=Path("runs/minutes"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/minutes-cpu"))
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.minutes = options.minutes or MINUTES[options.scale]
    try:
        _measure(options, shlex.join(["python", "-m", "bench.minutes", *arguments]), run)
    except UserError as error:
        sys.exit(f"bench.minutes: {error}")


def _measure(options: argparse.Namespace, command: str, run: Run) -> None:
    options.source = source_of(Config(data=Data(options.cifar, per_class=options.per_class)))
    if not options.source.labelled:
        raise UserError(f"--cifar {options.cifar}: has no labelled test images to evaluate on")
    setting = {name: getattr(options, name) for name in ("per_class", "minutes", "recipe", "encoder", "small_stem")}
    images = {"images": f"{len(options.source.train):,} training and {len(options.source.labelled_test):,} test images"}
    result: Row = {**context_of(choose_device().device, command), **images, "threads": torch.get_num_threads()}
    result |= {"setting": setting, "trial": None, "runs": []}
    before = _before(options.out, result)
    result |= {"trial": before.get("trial"), "runs": before.get("runs", [])}
    page = write_page(result, options.out) if result["runs"] else ""
    for seed in range(options.seeds):
        for side in sides_of(options):
            if any((row["side"], row["seed"]) == (side.name, seed) for row in result["runs"]):
                continue
            print(f"{side.name}, seed {seed}", flush=True)
            if side.kind == "ours" and result["trial"] is None:
                result["trial"] = steps_that_fit(options, run)
            result["runs"].append(run_side(options, side, seed, result["trial"] or (0.0, 1.0), run))
            page = write_page(result, options.out)
    print(page)


def _before(out: Path, now: Row) -> Row:
    """What an earlier start of the same measurement left, on this machine at this commit; else nothing."""
    try:
        before: Row = json.loads(Path(f"{out}.json").read_text())
    except (OSError, ValueError):
        return {}
    same = ("device", "cpu", "cores", "threads", "torch", "commit", "images", "setting")
    return before if all(before.get(name) == now[name] for name in same) else {}


if __name__ == "__main__":
    main()
