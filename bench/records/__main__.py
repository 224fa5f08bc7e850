"""A row of the record table: one command, several seeds, from process start to the last step.

    python -m bench.records RECIPE --data npz:PATH --target 50 [--measure knn|linear] [--minutes M] [-- OPTIONS]

Runs `moco pretrain RECIPE --data ... --seed N --knn-every 0 OPTIONS` for each seed, and after it `moco knn` or
`moco linear`, which is not timed. A mean below the mark, or above --minutes, is refused; else the log goes into
bench/records/ and the row is printed.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path

from bench.gpu import context_of
from bench.minutes import Run, points_of, run_process
from bench.side_by_side import Row, machine_in_words
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole

FOLDER = Path(__file__).parent


def run_seed(options: argparse.Namespace, seed: int, run: Run) -> Row:
    """One run, its time and its accuracy in 0..1."""
    folder = options.runs / f"{Path(options.recipe).stem}-{seed}-{time.time_ns()}"
    words = ["moco", "pretrain", options.recipe, "--data", options.data, "--seed", str(seed), "--knn-every", "0"]
    words += [*options.options, "--out", str(folder)]
    points = points_of(folder, run(words, folder))
    run(["moco", options.measure, str(folder)], folder / "evaluation")
    accuracy = json.loads((folder / f"{options.measure}.json").read_text())["accuracy"]["top-1"]
    return {
        "command": shlex.join(["python", "-m", *words]),
        "seed": seed,
        "minutes": points[-1].seconds / 60,
        "start_seconds": points[0].seconds,
        "steps": points[-1].step,
        "accuracy": accuracy,
    }


def require(rows: list[Row], target: float, minutes: float | None) -> None:
    """Raises UserError unless the mean accuracy is at or above the mark (in percent), and the mean time allowed."""
    accuracies = [100 * row["accuracy"] for row in rows]
    each = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
    if (mean := statistics.mean(accuracies)) < target:
        raise UserError(f"no record: a mean of {mean:.2f} % ({each}) is below the mark of {target:g} %")
    if minutes and (taken := statistics.mean(row["minutes"] for row in rows)) > minutes:
        raise UserError(f"no record: a mean of {taken:.2f} minutes is above {minutes:g}")


def row_of(log: Row, name: str) -> str:
    """The line of the table."""
    rows, measure = log["seeds"], log["measure"]
    accuracy = ", ".join(f"{100 * row['accuracy']:.2f}" for row in rows)
    minutes = [row["minutes"] for row in rows]
    taken = f"**{statistics.mean(minutes):.2f}** ({min(minutes):.2f} to {max(minutes):.2f})"
    cells = [log["track"], f"{measure} {log['target']:g} ({accuracy})", f"{log['machine']}, {log['date']}", taken]
    return f"| {' | '.join([*cells, log['what'], f'[{name}]({name})'])} |"


def main(arguments: list[str] | None = None, run: Run = run_process) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", type=float, required=True, help="the mark, in percent")
    parser.add_argument("--measure", choices=["knn", "linear"], default="knn")
    parser.add_argument("--minutes", type=float, help="the most that the mean may take")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--track", default="", help="the table's first column; the recipe")
    parser.add_argument("--what", default="", help="what changed since the row before")
    parser.add_argument("--runs", type=Path, default=Path("runs/records"))
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the log goes")
    parser.add_argument("--name", help="of the log; by default recipe, mark and date")
    words = sys.argv[1:] if arguments is None else arguments
    own, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = parser.parse_args(own)
    options.options = more
    try:
        _record(options, shlex.join(["python", "-m", "bench.records", *words]), run)
    except UserError as error:
        sys.exit(f"bench.records: {error}")


def _record(options: argparse.Namespace, command: str, run: Run) -> None:
    context = context_of(choose_device().device, command)
    stem = Path(options.recipe).stem
    name = (options.name or f"{stem}-{options.measure}{options.target:g}-{context['date']}") + ".json"
    if (options.out / name).exists():
        raise UserError(f"{options.out / name} is there already: choose another --name")
    seeds = []
    for seed in range(options.seeds):
        seeds.append(run_seed(options, seed, run))
        print("seed {seed}: {accuracy:.2%} after {minutes:.2f} minutes".format(**seeds[-1]), flush=True)
    require(seeds, options.target, options.minutes)
    gpu = [] if context["device"] == "CPU" else [context["device"]]
    log = {**context, "machine": ", ".join([*gpu, machine_in_words(context)]), "track": options.track or stem}
    log |= {"measure": options.measure, "target": options.target, "what": options.what, "seeds": seeds}
    write_whole(options.out / name, lambda file: file.write((json.dumps(log, indent=1) + "\n").encode()))
    print(row_of(log, name))


if __name__ == "__main__":
    main()
