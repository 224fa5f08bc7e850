"""Ours beside what others use for the same work, in turns, on this CPU.

    python -m bench [--images FOLDER] [--cifar npz:PATH] [--repeats 5] [--only NAME] [--quick] [--profile NAME]

A whole run writes its tables into docs/benchmarks.md and its figures into bench/results/data-cpu.json. A run of --only
some works, or of --quick sizes, writes to the paths of --page and --json.
"""

import argparse
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.data import jpegs, jpegs_per_core, shard_reads, small_views
from bench.material import Material, prepare
from bench.side_by_side import Row, Work, context, delivered, in_words, markdown, measure
from bench.steps import large_step, small_step

ROOT = Path(__file__).parents[1]
BETWEEN = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.S)


def works(material: Material, quick: bool) -> list[Work]:
    if quick:
        return [
            jpegs_per_core(material, 64),
            jpegs(material, 64),
            small_views(material),
            small_step(material, "tiny", batch=16, queue=64),
            large_step("resnet18", 32, 4, 64),
            shard_reads(material, cold=True),
            shard_reads(material, cold=False),
        ]
    return [
        jpegs_per_core(material),
        jpegs(material),
        small_views(material),
        small_step(material),
        small_step(material, "tiny", steps=16),
        large_step(),
        shard_reads(material, cold=True),
        shard_reads(material, cold=False),
    ]


def growth(material: Material, quick: bool) -> list[Work]:
    """How the figures change with cores, image size and K, one at a time."""
    if quick:
        return [small_views(material, 32, cores=1)]
    step = partial(small_step, material, "tiny", steps=8)
    grown = [
        *(jpegs(material, 224, cores) for cores in (1, 2)),
        jpegs(material, 128),
        *(small_views(material, 32, cores) for cores in (1, 2)),
        *(small_views(material, size) for size in (64, 96)),
        *(step(cores=cores) for cores in (1, 2)),
        *(step(queue=queue) for queue in (65536, 262144)),
    ]
    # One peer is enough to see what grows.
    return [replace(work, at_least=None, peers=work.peers[-1:], equal=()) for work in grown]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a folder of photographs; without it JPEGs are drawn")
    parser.add_argument("--cifar", metavar="npz:PATH", help="small images; without it they are drawn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side; growth takes half as many")
    parser.add_argument("--only", metavar="NAME", action="append", help="this work alone, or growth; may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--profile", metavar="NAME", help="print PyTorch's profile of our side of this work")
    parser.add_argument("--page", type=Path, help="the page with <!-- table --> and <!-- end -->")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if not options.only and not options.quick:
        options.page = options.page or ROOT / "docs/benchmarks.md"
        options.json = options.json or ROOT / "bench/results/data-cpu.json"
    if options.page and len(BETWEEN.findall(options.page.read_text())) != 1:
        sys.exit(f"{options.page}: has not one <!-- table --> and one <!-- end -->")
    start = time.monotonic()

    def log(what: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="moco-bench-") as folder:
        material = Material(Path(folder))
        known = works(material, options.quick)
        names = [work.name for work in known]
        for name in [*(options.only or []), *([options.profile] if options.profile else [])]:
            if name not in [*names, "growth"]:
                parser.error(f"no work named {name!r}: there are {', '.join([*names, 'growth'])}")
        amounts = (32, 2, 512) if options.quick else (512, 2, 8192)
        where = context(shlex.join(["python", "-m", "bench", *arguments]))
        where["images"] = prepare(material.path, options.images, options.cifar, *amounts)
        where["repeats"] = options.repeats
        log(where["images"])
        if options.profile:
            profile(known[names.index(options.profile)])
            return
        rows = [
            row
            for work in known
            if not options.only or work.name in options.only
            for row in measure(work, options.repeats, log)
        ]
        grown = [
            row
            for work in growth(material, options.quick)
            if not options.only or "growth" in options.only
            for row in measure(work, (options.repeats + 1) // 2, log)
        ]
    if options.json:
        options.json.write_text(json.dumps({**where, "rows": rows, "growth": grown}, indent=2) + "\n")
    if options.page:
        write_page(options.page, where, rows, grown)
    show(rows, "at least")
    show(grown, "growth")


def write_page(page: Path, where: Row, rows: list[Row], grown: list[Row]) -> None:
    """Puts the tables between the page's markers."""
    lines = [
        *(["", in_words(where), ""]),
        *markdown(rows),
        *(["", "How it grows:", "", *markdown(grown)] if grown else []),
        *(["", "What each side delivers:", "", *delivered(rows), ""]),
    ]
    page.write_text(BETWEEN.sub(lambda _: "\n".join(lines) + "\n", page.read_text()))


def show(rows: list[Row], title: str) -> None:
    """The lines of the page's table, for the terminal."""
    if not rows:
        return
    head, _, *lines = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in markdown(rows))
    table = Table(*head, title=title)
    for line in lines:
        table.add_row(*(cell.replace("**", "").strip("|") for cell in line[: len(head)]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def profile(work: Work) -> None:
    """Where the time of our side goes; without workers, whose time PyTorch's profiler does not see."""
    torch.set_num_threads(work.cores)
    make: Callable = work.ours.make
    if "workers" in make.keywords:  # type: ignore[attr-defined]
        make = partial(make, workers=0)
    turn = make()
    turn.before()
    turn.work()
    turn.before()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        turn.work()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=50))


if __name__ == "__main__":
    main()
