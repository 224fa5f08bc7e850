"""What each sub-command does, in terms of the rooms."""

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from moco.cli import Judge, Look, Pack, Report, Reproduce, Suggest
from moco.config import Compute, Config, Linear, check, require_all, to_dict
from moco.contrast.ranks import rank, world_size
from moco.data import ImageSet, InMemory, Source, open_source, shuffled, source_of
from moco.data.sources import KINDS
from moco.data.survey import Survey, survey
from moco.device import Device, choose_device, start_ranks, stop_ranks
from moco.encoders import build_encoder
from moco.errors import UserError
from moco.evaluation import Features, Trained, evaluate_knn, evaluate_linear, knn_predict, open_trained
from moco.recipes import PUBLISHED, RECIPES, get_recipe, write_recipe
from moco.report import (
    SEVERITIES,
    Gallery,
    GalleryMaker,
    accuracy_table,
    draw_contacts,
    draw_curves,
    draw_views,
    survey_table,
    write_page,
)
from moco.run import Run, read_lines
from moco.training import Stopped, diagnose, start_logging, write_findings
from moco.training import pretrain as train
from moco.views import Views, get_pretext

log = logging.getLogger("moco")
console = Console(highlight=False)

CONTACTS = 24
"""Images on a contact sheet."""


@contextmanager
def computing(compute: Compute) -> Iterator[Device]:
    """The device, and the ranks joined as long as the command runs."""
    device = choose_device(compute)
    start_ranks(device.device)
    try:
        yield device
    finally:
        stop_ranks()


def say(*what: Any) -> None:
    """Prints on the main rank."""
    if rank() == 0:
        console.print(*what)


def pretrain(config: Config, folder: Path, resume: bool) -> Run:
    """Trains a run in its folder; told to stop, leaves by SystemExit with the signal's usual exit code."""
    get_pretext(config.views.views)
    with computing(config.compute) as device:
        check(config, world_size())
        # What is wrong with its name is said first.
        build_encoder(config.encoder.encoder, config.encoder.small_stem, config.encoder.freeze_patches)
        source = source_of(config)
        if len(source.train) < config.training.batch_size:
            have = len(source.train)
            raise UserError(f"--batch-size {config.training.batch_size}: the data set has only {have} training images")
        run = Run.open(folder) if resume else Run.create(folder, config)
        start_logging(run, rank() == 0)
        if not resume and rank() == 0:
            draw_views(
                source.train,
                Views(config.views.views, config.views.image_size, config.training.seed),
                folder / "views.png",
            )
        try:
            train(config, source, run, device, resume)
        except Stopped as stopped:
            say(f"stopped after step {stopped.step}; continue it by:\n  {_command(config, folder)} --resume")
            raise SystemExit(128 + stopped.signal_number) from None
        if rank() == 0:
            draw_curves(run)
        say(f"done: {folder} holds the checkpoints, metrics.jsonl, curves.png, views.png and tensorboard/")
        return run


def _command(config: Config, folder: Path) -> str:
    out = "" if folder == Path("runs") / Path(config.recipe).stem else f" --out {folder}"
    return f"moco pretrain {config.recipe}{out}"


def _open(judged: Judge) -> tuple[Trained, Source]:
    """What is judged and on which data."""
    trained = open_trained(judged.run, judged.encoder, judged.image_size)
    if judged.image_size is not None and judged.image_size < 1:
        raise UserError(f"--image-size {judged.image_size}: at least 1")
    if judged.run.is_file() and judged.data is None:
        raise UserError(f"{judged.run}: a file of weights names no data set: give --data")
    data = replace(trained.config.data, source=judged.data or trained.config.data.source, download=judged.download)
    trained.config = replace(trained.config, data=data, compute=judged.compute)
    source = source_of(trained.config)
    if not source.labelled:
        raise UserError(f"--data {data.source}: has no labels to judge by (classes are folders, or an array of labels)")
    return trained, source


def _report(trained: Trained, protocol: str, options: dict[str, Any], accuracies: dict[str, float]) -> None:
    """Prints the table and writes the JSON of a protocol."""
    published = PUBLISHED.get((trained.config.recipe, protocol))
    rows = [(name, value, published if name == "top-1" else None) for name, value in accuracies.items()]
    where = f"{trained.config.encoder.encoder}, {trained.config.data.source}"
    say(accuracy_table(f"{protocol}: {where}", rows))
    if rank() != 0:
        return
    values: dict[str, Any] = {"protocol": protocol, "weights": str(trained.weights), **options}
    values |= {"accuracy": accuracies, "published": published._asdict() if published else None}
    # Beside a file of weights there may be others.
    own_folder = trained.weights.parent != trained.folder
    name = protocol if own_folder else f"{trained.weights.name}.{protocol}"
    say(f"written to {Run(trained.folder).write_json(name, values)}")


def knn(judged: Judge, k: int | None, temperature: float | None, random: bool) -> None:
    """Judges a run by its nearest neighbours."""
    with computing(judged.compute) as device:
        start_logging(None, rank() == 0)
        trained, source = _open(judged)
        k = k if k is not None else trained.config.log.knn_k
        temperature = temperature if temperature is not None else trained.config.log.knn_temperature
        if k < 1 or not temperature > 0:
            raise UserError(f"--k {k}: at least 1" if k < 1 else f"--temperature {temperature}: above 0")
        accuracies = {"top-1": _knn(trained, source, device, k, temperature)}
        if random:
            accuracies["random weights"] = _knn(_untrained(trained), source, device, k, temperature)
        _report(trained, "knn", {"data": trained.config.data.source, "k": k, "temperature": temperature}, accuracies)


def _knn(trained: Trained, source: Source, device: Device, k: int, temperature: float) -> float:
    encoder, centre = trained.on(device)
    return evaluate_knn(encoder, source, centre, device, k, temperature, workers=trained.config.compute.workers)


def _untrained(trained: Trained) -> Trained:
    torch.manual_seed(trained.config.training.seed)
    options = trained.config.encoder
    return replace(trained, encoder=build_encoder(options.encoder, options.small_stem, options.freeze_patches))


def linear(judged: Judge, options: Linear) -> None:
    """Judges a run by a linear classifier."""
    with computing(judged.compute) as device:
        start_logging(None, rank() == 0)
        trained, source = _open(judged)
        encoder, centre = trained.on(device)
        workers = trained.config.compute.workers
        quiet = rank() != 0 or not sys.stderr.isatty()
        progress = lambda epochs: track(epochs, "linear", console=Console(stderr=True), disable=quiet)  # noqa: E731
        accuracy = evaluate_linear(encoder, source, centre, device, options, workers, progress)
        accuracies = {"top-1": accuracy.top1}
        if source.num_classes > 5:
            accuracies["top-5"] = accuracy.top5
        _report(trained, "linear", {"data": trained.config.data.source, **asdict(options)}, accuracies)


def report(options: Report) -> None:
    """Writes the page about some runs."""
    require_all([(len(options.runs) > 0, "moco report RUN [RUN ...]: the folder of a run is missing")])
    runs = [Run.open(path) for path in options.runs]
    for run in runs:
        run.config()
    out = options.out or (runs[0].path if len(runs) == 1 else Path()) / "report.html"
    rules = [
        (len(set(map(Path.resolve, options.runs))) == len(runs), "RUN: the same run is given twice"),
        (1 <= options.points <= 10_000, f"--points {options.points}: in 1..10000"),
        (out.absolute().parent.is_dir(), f"--out {out}: no such folder: {out.parent}"),
        (not out.is_dir(), f"--out {out}: is a folder: give the page's file"),
    ]
    require_all(rules)
    with computing(options.compute) as device:
        start_logging(None, rank() == 0)
        galleries = [_gallery(run, options, device, max(1, options.points // len(runs))) for run in runs]
        if rank() == 0:
            write_page(runs, galleries, out)
            console.print(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser", markup=False)


def doctor(folder: Path) -> None:
    """Says what a run's records show, in plain words; leaves with 1 if something is wrong."""
    run = Run.open(folder)
    findings = diagnose(run)
    if not findings:
        raise UserError(f"{folder}: nothing is recorded yet: wait for the first line of metrics.jsonl")
    write_findings(run, findings)
    for finding in findings:
        sign, colour = SEVERITIES[finding.severity], COLOURS[finding.severity]
        console.print(f"[{colour}]{sign} {finding.name}[/]: {escape(finding.text)}")
        console.print(f"    seen in   {finding.evidence}\n    to do     {finding.advice}", markup=False)
        console.print(f"    rule from {finding.source}\n", markup=False, style="dim")
    if any(finding.severity == "problem" for finding in findings):
        raise SystemExit(1)


COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan", "good": "green"}


def _gallery(run: Run, options: Report, device: Device, points: int) -> Gallery | str:
    """The pictures of a run; or why there are none, as its images may be elsewhere by now."""
    quiet = rank() != 0 or not sys.stderr.isatty()

    def progress(what: str) -> Callable[[Any], Any]:
        return lambda pieces: track(pieces, f"{run.path.name}: {what}", console=Console(stderr=True), disable=quiet)

    try:
        trained = open_trained(run.path)
        data = replace(trained.config.data, source=options.data or trained.config.data.source)
        config = trained.config = replace(trained.config, data=data, compute=options.compute)
        source = source_of(config)
        encoder, centre = trained.on(device)
        views = Views(config.views.views, config.views.image_size, config.training.seed, device.channels_last)
        workers = config.compute.workers
        return GalleryMaker(encoder, source, centre, views, device, points, workers, progress).make()
    except UserError as error:
        if options.data is not None:
            raise
        log.warning("%s: the page has no pictures of it: %s", run.path, error)
        return str(error)


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


def list_sources() -> None:
    """A table of what --data takes."""
    table = Table(title="sources", title_justify="left")
    for column in ("SOURCE", "what"):
        table.add_column(column, no_wrap=column == "SOURCE")
    for name, kind in KINDS.items():
        table.add_row(kind.spelling(name), escape(kind.about) + (" (--data.download)" if kind.fetched else ""))
    console.print(table)


def data(look: Look) -> None:
    """Tells what is in a data set, and draws a contact sheet of it."""
    get_pretext(look.views)
    out, size = look.out, look.image_size
    rules = [
        (look.sample >= 0, f"--sample {look.sample}: at least 0 (0: all images)"),
        (size is None or size >= 1, f"--image-size {size}: at least 1"),
        (out is None or out.suffix.lower() == ".png", f"--out {out}: a contact sheet is a .png"),
        (out is None or out.absolute().parent.is_dir(), f"--out {out}: no such folder: {out and out.parent}"),
    ]
    require_all(rules)
    # Nothing is refused for being broken, and all is looked at as it lies there.
    source = open_source(look.source, size=size or 32, download=look.download, max_bad=1, resident_mb=0)
    found = _survey("training images", source.train, look)
    if source.bank is not None:
        _survey("labelled training images", source.bank, look)
    if source.test is not None:
        _survey("test images", source.test, look, found)
    if out is not None:
        _draw_contacts(source, found, look, out)


def _survey(name: str, images: ImageSet, look: Look, trained_on: Survey | None = None) -> Survey:
    quiet = rank() != 0 or not sys.stderr.isatty()
    progress = lambda pieces: track(pieces, name, console=Console(stderr=True), disable=quiet)  # noqa: E731
    found = survey(images, look.sample, progress=progress)
    console.print(survey_table(f"{look.source}: {name}", found, trained_on))
    return found


def _draw_contacts(source: Source, found: Survey, look: Look, out: Path) -> None:
    if not len(found.readable):
        raise UserError(f"{look.source}: no image can be read, so there is no contact sheet")
    own = min(224, *max(found.sizes)) if len(found.sizes) == 1 else 224
    chosen = shuffled(torch.arange(min(CONTACTS, len(found.readable))), len(found.readable), 0, 0)
    views = Views(look.views, look.image_size or own, seed=0)
    draw_contacts(source.train, found.readable[chosen], views, out, source.classes)
    console.print(f"written to {out}: images, and two views of each ({look.views}, {views.size} pixels)", markup=False)


def suggest(options: Suggest) -> None:
    """Writes a recipe for a data set, with the reason of each choice and what it would cost here."""
    from moco.reproduce import estimate
    from moco.suggest import Facts, suggest, warnings

    rules = [
        (options.out.suffix == ".yaml", f"--out {options.out}: a recipe is a .yaml"),
        (options.overwrite or not options.out.exists(), f"{options.out} is there: --overwrite, or --out another"),
        (options.hours is None or options.hours > 0, f"--hours {options.hours}: above 0"),
    ]
    require_all(rules)
    with computing(options.compute) as device:
        start_logging(None, rank() == 0)
        source = open_source(options.source, download=options.download, max_bad=1)
        found = survey(source.train, sample=500)
        if not found.sizes:
            raise UserError(f"{options.source}: no image can be read")
        sides = sorted(min(size) for size, number in found.sizes.items() for _ in range(number))
        facts = Facts(
            options.source,
            images=len(source.train),
            side=sides[len(sides) // 2],
            labelled=source.labelled,
            gpu=device.device.type == "cuda",
        )
        config, choices = suggest(facts, options.compute)
        cost = estimate(config, source, device)
        if options.hours is not None:
            before = config.training.epochs
            epochs = max(1, int(before * 3600 * options.hours / cost.seconds))
            config, choices = suggest(facts, options.compute, epochs)
            # The steps are the same, only more or fewer.
            cost = cost._replace(steps=cost.steps * epochs // before, seconds=cost.seconds * epochs / before)
        table = Table(title=f"{facts.images:,} images of {facts.side} pixels", title_justify="left")
        for column in ("option", "value", "why", "scales from"):
            table.add_column(column, no_wrap=column == "option")
        for choice in choices:
            table.add_row(choice.flag, f"{choice.value}", escape(choice.reason), escape(choice.published))
        say(table)
        for warning in warnings(facts, len(found.broken)):
            log.warning(warning)
        memory = f", {cost.memory_mb:,.0f} MB of GPU memory" if cost.memory_mb else ""
        rate = cost.steps * config.training.batch_size / cost.seconds
        say(f"about {_time(cost.seconds)} here for {cost.steps:,} steps, {rate:,.0f} images/s{memory}")
        if rank() == 0:
            write_recipe(options.out, config, [f"{choice.flag}: {choice.reason}" for choice in choices])
        say(f"written to {options.out}; start it by:\n  moco pretrain {options.out}")


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"


def pack(options: Pack) -> None:
    """Packs a data set into shards."""
    from moco.data.pack import pack as pack_source

    rules = [
        (options.size is None or options.size >= 1, f"--size {options.size}: at least 1"),
        (1 <= options.quality <= 100, f"--quality {options.quality}: in 1..100"),
        (options.images_per_shard >= 1, f"--images-per-shard {options.images_per_shard}: at least 1"),
        (options.workers >= 0, f"--workers {options.workers}: at least 0"),
    ]
    require_all(rules)
    # Encoded images are packed as they are encoded, not as pixels.
    source = open_source(options.source, download=options.download, max_bad=1, resident_mb=0)
    packed = pack_source(
        source,
        options.out,
        size=options.size,
        format=options.format,
        quality=options.quality,
        images_per_shard=options.images_per_shard,
        workers=options.workers,
    )
    console.print(str(packed), markup=False)
    console.print(f"train on them by:\n  moco pretrain RECIPE --data shards:{options.out}", markup=False)


def list_recipes() -> None:
    """A table of the recipes."""
    table = Table(title="recipes (moco recipes RECIPE shows one whole)", title_justify="left")
    for column in ("recipe", "what", "cost", "reaches"):
        table.add_column(column, no_wrap=column == "recipe")
    for recipe in RECIPES.values():
        table.add_row(recipe.name, recipe.about, recipe.cost, recipe.reaches)
    console.print(table)


def show_recipe(name: str) -> None:
    """A recipe: what it is, costs and reaches, its command, and every option."""
    recipe = get_recipe(name)
    console.print(f"{recipe.name}: {recipe.about}\n  cost     {recipe.cost}\n  reaches  {recipe.reaches}")
    console.print(f"  from     {recipe.source}\n  run      {recipe.command}\n")
    console.print(yaml.safe_dump(to_dict(recipe.config), sort_keys=False), markup=False)


def reproduce(options: Reproduce) -> None:
    """Runs what is missing of an experiment and writes its page; told to stop, leaves as `pretrain` does."""
    from moco.reproduce import EXPERIMENTS, by_cell, plan, run_missing, write_page

    experiment = EXPERIMENTS[options.experiment]
    scale = options.scale
    seeds = options.seeds or (1 if scale == "imagenet" else experiment.seeds)
    out = options.out or Path("runs/reproduce") / f"{experiment.name}-{scale}"
    wanted = {"epochs": options.epochs, "source": options.data, "per_class": options.per_class}
    changes = {name: value for name, value in wanted.items() if value is not None}
    jobs = plan(experiment, experiment.cells(scale), seeds, out, changes, options.compute)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    with computing(options.compute) as device:
        start_logging(None, rank() == 0)
        for job in jobs:
            check(job.config, world_size())
        if options.dry_run:
            _tell_costs(jobs, device)
            return
        # On a CPU the features are computed once; elsewhere it is the protocol of section 4.1 as it stands.
        linear = Linear(cached=scale == "cpu")
        stopped = None
        try:
            run_missing(jobs, device, linear, deadline)
        except Stopped as told:
            stopped = told
        done = [result for job in jobs if (result := job.result()) is not None]
        if rank() == 0:
            context = _reproduced(options, jobs, device)
            claims = experiment.claims(scale)
            page = write_page(experiment, jobs, claims, by_cell(done), context, options.page or out)
            say(f"{len(done)} of {len(jobs)} runs are done; written to {page}")
        if stopped is not None:
            say("the same command goes on")
            raise SystemExit(128 + stopped.signal_number)


def _reproduced(options: Reproduce, jobs: list[Any], device: Device) -> dict[str, Any]:
    """Under what the results of an experiment were reached."""
    config = jobs[0].config
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    on_gpu = device.device.type == "cuda"
    machine = torch.cuda.get_device_name(device.device) if on_gpu else f"{cores} CPU cores"
    few = f", {config.data.per_class:,} images a class" if config.data.per_class else ""
    return {
        "experiment": options.experiment,
        "scale": options.scale,
        "command": shlex.join(["moco", *sys.argv[1:]]),
        "machine": f"{machine}, {'bf16' if device.bf16 else 'fp32'}",
        "torch": str(torch.__version__),
        "date": str(date.today()),
        "runs": len(jobs),
        "setting": f"{config.encoder.encoder}, {config.data.source.split(':')[0]}{few}, {_shared(jobs)}; "
        f"linear: {'features of centre crops' if options.scale == 'cpu' else 'section 4.1'}.",
    }


def _shared(jobs: list[Any]) -> str:
    """The options that all runs have alike, of those that a reader asks for."""
    asked = {
        "epochs": "training.epochs",
        "batch": "training.batch_size",
        "learning rate": "training.lr",
        "K": "contrast.queue_size",
        "m": "contrast.momentum",
        "temperature": "contrast.temperature",
        "BN groups of": "contrast.bn_group",
    }
    values = {name: {attrgetter(path)(job.config) for job in jobs} for name, path in asked.items()}
    return ", ".join(f"{name} {next(iter(found))}" for name, found in values.items() if len(found) == 1)


def _tell_costs(jobs: list[Any], device: Device) -> None:
    """A table of an experiment's settings and what each run of it costs here, measured by a few steps."""
    from moco.reproduce import estimate, sources

    table = Table(title="cost of a run on this machine, by a few steps of it", title_justify="left")
    for column in ("setting", "steps", "minutes", "GPU memory", "done"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    total, missing = 0.0, 0
    first = {job.cell.name: job for job in reversed(jobs)}
    for job, source in sources([job for job in jobs if first[job.cell.name] is job]):
        seeds = [other for other in jobs if other.cell.name == job.cell.name]
        done = sum(other.result() is not None for other in seeds)
        name = job.cell.label
        if isinstance(source, UserError):
            table.add_row(name, "", escape(str(source)), "", f"{done} of {len(seeds)}")
            continue
        cost = estimate(job.config, source, device)
        total += cost.seconds * (len(seeds) - done)
        missing += len(seeds) - done
        memory = f"{cost.memory_mb:,.0f} MB" if cost.memory_mb else ""
        table.add_row(name, f"{cost.steps:,}", f"{cost.seconds / 60:,.1f}", memory, f"{done} of {len(seeds)}")
    say(table)
    say(f"{missing} runs are missing, about {total / 60:,.0f} minutes in all")
