"""moco reproduce: the experiments of the paper."""

import os
import shlex
import sys
import time
from datetime import date
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import torch
from rich.markup import escape
from rich.table import Table

from moco.cli.commands.common import computing, print_on_main
from moco.cli.options import Reproduce
from moco.reproduce import EXPERIMENTS, Job, plan, run_missing, sources, write_page, write_varied
from moco.reproduce.experiment import Cell, Scale
from moco.runs.config import GROUPS, MAY_CHANGE, Linear, check
from moco.runs.options import parse_option
from moco.runtime.device import Device
from moco.runtime.errors import UserError, require_all
from moco.runtime.ranks import is_main, world_size
from moco.runtime.signals import Stopped
from moco.training import start_logging
from moco.training.estimate import estimate


def run(options: Reproduce) -> None:
    """Runs what is missing of an experiment and writes its page; stopped, leaves as `pretrain` does."""
    if options.experiment == "transfer":
        _transfer(options)
        return
    require_all([(options.scale != "paper", "--scale paper: is of transfer; here it is --scale imagenet")])
    experiment, scale = EXPERIMENTS[options.experiment], cast(Scale, options.scale)
    set_, (option, values) = dict(parse_option(text, GROUPS) for text in options.set), _varied(options.vary)
    rules = [
        ("seed" not in {*set_, option}, "seed: --seeds sets how many seeds there are"),
        (option not in MAY_CHANGE, f"--vary {option}: the results do not depend on it"),
        (set_.get("knn_every") != 0, "--set knn_every=0: runs are evaluated by kNN too"),
    ]
    require_all(rules)
    if options.data is not None:
        set_["source"] = options.data
    name = _name(f"{experiment.name}-{scale}", *options.set)
    out = options.out or Path("runs/reproduce") / name
    seeds = options.seeds or (1 if scale == "imagenet" else experiment.seeds)
    grids = {}
    for spelled, change in values.items():
        cells = _only(experiment.cells(scale, set_ | change), options.only)
        grids[spelled] = plan(cells, seeds, out, options.compute, f"{option}={spelled}" if option else "")
    there = {(cell.series, cell.x) for cell in cells}
    claims = [claim for claim in experiment.claims(scale) if {claim.better, claim.worse} <= there]
    require_all([(bool(claims) or not option, f"--vary {option}: there is no finding to compare")])
    # All settings with one seed before the next.
    jobs = sorted((job for grid in grids.values() for job in grid), key=lambda job: job.seed)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    with computing(options.compute) as device:
        start_logging(None, is_main())
        for job in jobs:
            check(job.config, world_size())
        if options.dry_run:
            _print_costs(jobs, device, _linear(scale))
            return
        page, stopped = _folder(options.page or out), None
        try:
            run_missing(jobs, device, _linear(scale), deadline)
        except Stopped as error:
            stopped = error
        if is_main():
            context, only = _reproduced(options, jobs, device), [f"only={_name(*options.only)}"] if options.only else []
            if option:
                name = _name(name, f"vary-{option}", *only)
                page = write_varied(experiment, option, grids, claims, context, page, name)
            else:
                page = write_page(experiment, jobs, claims, context, page, _name(name, *only))
            done = sum(job.result() is not None for job in jobs)
            more = "" if done == len(jobs) else "; the same command continues"
            print_on_main(f"{done} of {len(jobs)} runs are done{more}; written to {page}")
        if stopped is not None:
            raise SystemExit(128 + stopped.signal_number)


def _transfer(options: Reproduce) -> None:
    """The transfer tables: trains what is missing, and writes their page."""
    from moco.reproduce.transfer import TransferScale, reproduce_transfer, setting_of, settings
    from moco.reproduce.transfer_page import write_transfer

    rules = [
        (options.scale != "imagenet", "--scale imagenet: transfer has cpu, gpu and paper"),
        (not options.vary, "--vary: transfer varies the number of labels itself"),
        (not options.dry_run, "--dry-run: transfer has none: one run of each setting shows what it takes (--seeds 1)"),
        (options.minutes is None, "--minutes: transfer is stopped by Ctrl-C, and the same command continues"),
    ]
    require_all(rules)
    scale = cast(TransferScale, options.scale)
    name = _name(f"transfer-{scale}", *options.set, *([f"only={_name(*options.only)}"] if options.only else []))
    out, seeds = options.out or Path("runs/reproduce") / _name(f"transfer-{scale}", *options.set), options.seeds or 3
    with computing(options.compute) as device:
        start_logging(None, is_main())
        page = _folder(options.page or out)
        wanted = settings(scale, options.data, options.only, options.set)
        try:
            done = reproduce_transfer(wanted, scale, out, options.starts, seeds, options.compute)
        except Stopped as stopped:
            raise SystemExit(128 + stopped.signal_number) from None
        if is_main():
            setting = "" if scale == "paper" else setting_of(wanted, "" if options.starts else scale)
            path = write_transfer(done, _context(options, device, setting), page, name)
            print_on_main(f"written to {path}")


def _linear(scale: Scale) -> Linear:
    """On a CPU the features are computed once; elsewhere it is the protocol of section 4.1 as it stands."""
    return Linear(cached=scale == "cpu")


def _name(*pieces: str) -> str:
    """The name of a folder or a page, from its experiment, scale and options."""
    return ",".join(pieces).replace("/", "-").replace(" ", "-")[:150]


def _folder(path: Path) -> Path:
    """The folder, created if need be. Raises UserError before anything is run in vain."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created: {error.strerror}") from error
    return path


def _varied(spelled: str | None) -> tuple[str, dict[str, dict[str, Any]]]:
    """--vary NAME=VALUE,VALUE: the option's name, and the change of options at each value."""
    if spelled is None:
        return "", {"": {}}
    name, _, values = spelled.partition("=")
    changes = {value: dict([parse_option(f"{name}={value}", GROUPS)]) for value in values.split(",")}
    return next(iter(next(iter(changes.values())))), changes


def _only(cells: list[Cell], wanted: tuple[str, ...]) -> list[Cell]:
    """The settings of a grid that are wanted, all if none is named."""
    if unknown := set(wanted) - {word for cell in cells for word in (cell.series, cell.spelled, cell.label)}:
        known = ", ".join(dict.fromkeys(cell.label for cell in cells))
        raise UserError(f"--only {', '.join(sorted(unknown))}: no such setting; there are {known}")
    return [cell for cell in cells if not wanted or {cell.series, cell.spelled, cell.label} & set(wanted)]


def _reproduced(options: Reproduce, jobs: list[Job], device: Device) -> dict[str, Any]:
    """Under which conditions the results of an experiment were measured."""
    config = jobs[0].config
    few = f", {config.data.per_class:,} images a class" if config.data.per_class else ""
    setting = (
        f"{config.encoder.encoder}, {config.data.source.split(':')[0]}{few}, {_shared(jobs)}; "
        f"linear: {'features of centre crops' if options.scale == 'cpu' else 'section 4.1'}."
    )
    return _context(options, device, setting) | {"runs": len(jobs)}


def _context(options: Reproduce, device: Device, setting: str) -> dict[str, Any]:
    """Command, machine, date, and a setting in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    on_gpu = device.is_gpu
    machine = torch.cuda.get_device_name(device.device) if on_gpu else f"{cores} CPU cores"
    return {
        "experiment": options.experiment,
        "scale": options.scale,
        "command": shlex.join(["moco", *sys.argv[1:]]),
        "machine": f"{machine}, {'bf16' if device.bf16 else 'fp32'}",
        "torch": str(torch.__version__),
        "date": str(date.today()),
        "setting": setting,
    }


def _shared(jobs: list[Job]) -> str:
    """The main options that are the same in all runs."""
    names = {
        "epochs": "training.epochs",
        "steps": "training.iterations",
        "batch": "training.batch_size",
        "learning rate": "training.lr",
        "K": "contrast.queue_size",
        "m": "contrast.key_momentum",
        "temperature": "contrast.temperature",
        "BN groups of": "contrast.bn_group",
    }
    values = {name: {attrgetter(path)(job.config) for job in jobs} for name, path in names.items()}
    if any(values["steps"] - {None}):
        del values["epochs"]  # steps are given in their place
    shared = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    return ", ".join(f"{name} {value}" for name, value in shared.items() if value is not None)


def _print_costs(jobs: list[Job], device: Device, linear: Linear) -> None:
    """A table of an experiment's settings and what each run of it costs here, measured by a few steps."""
    table = Table(title="cost of a run on this machine, estimated from a few steps", title_justify="left")
    for column in ("setting", "steps", "minutes", "GPU memory", "done"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    total, missing, on_gpu = 0.0, 0, device.is_gpu
    first = {job.setting: job for job in reversed(jobs)}
    for job, source in sources([job for job in jobs if first[job.setting] is job]):
        seeds = [other for other in jobs if other.setting == job.setting]
        done = sum(other.result() is not None for other in seeds)
        name = escape(job.setting)
        if isinstance(source, UserError):
            table.add_row(name, "", escape(str(source)), "", f"{done} of {len(seeds)}")
            continue
        cost = estimate(job.config, source, device, linear)
        total += cost.seconds * (len(seeds) - done)
        missing += len(seeds) - done
        memory = f"{cost.memory_mb:,.0f} MB" if on_gpu else ""
        table.add_row(name, f"{cost.steps:,}", f"{cost.seconds / 60:,.1f}", memory, f"{done} of {len(seeds)}")
    print_on_main(table)
    print_on_main(f"{missing} runs are missing, about {total / 60:,.0f} minutes in all")
