"""moco suggest: a recipe for a data set and this machine."""

import gc
import logging
import shlex
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from moco.cli.commands.common import check_file, computing, print_on_main
from moco.cli.options import Suggest
from moco.data import Source, open_source
from moco.data.dataset import Encoded
from moco.data.survey import survey
from moco.encoders import fixed_size
from moco.evaluation import open_trained
from moco.runs.config import Compute, Encoder
from moco.runs.recipes import write_recipe
from moco.runs.suggest import Choice, Facts, warnings
from moco.runs.suggest import suggest as suggested
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import is_main
from moco.training import start_logging
from moco.training.estimate import Estimate, estimate

log = logging.getLogger("moco")


def run(options: Suggest) -> None:
    """Writes a recipe for a data set, with the reason of each choice and what it would cost here."""
    importing = time.process_time()  # until now, which a run takes as well
    check_file("--out", options.out, (".yaml",), options.overwrite)
    with computing(options.compute) as device:
        start_logging(None, is_main())
        start = time.perf_counter()
        source = open_source(options.source, download=options.download, max_bad=1)
        before = importing + time.perf_counter() - start
        found = survey(source.train, sample=500)
        if not found.sizes:
            raise UserError(f"{options.source}: no image can be read")
        if len(source.train) < 2:
            raise UserError(f"{options.source}: has a single image, so there are no negatives")
        sides = sorted(min(size) for size, number in found.sizes.items() for _ in range(number))
        facts = Facts(
            options.source,
            images=len(source.train),
            side=sides[len(sides) // 2],
            labelled=source.labelled,
            gpu=device.is_gpu,
            decoded=isinstance(source.train, Encoded),
        )
        if options.init != "random":
            given, fixed = _given(options.init)
            facts = replace(facts, given=given, fixed_size=fixed)
        facts, cost = _fitting(facts, options.compute, source, device)
        config, choices = suggested(facts, options.compute)
        if options.hours is not None:
            usual = config.training.epochs
            epochs = max(1, int(usual * (3600 * options.hours - before) / cost.seconds))
            config, choices = suggested(facts, options.compute, epochs)
            # The steps are the same, only more or fewer.
            cost = cost._replace(steps=cost.steps * epochs // usual, seconds=cost.seconds * epochs / usual)
        print_on_main(table_of(choices, f"{facts.images:,} images of {facts.side} pixels"))
        for warning in warnings(facts, config.views, len(found.broken), len(found.examined)):
            log.warning(warning)
        memory = f"{cost.memory_mb:,.0f} MB of {'GPU ' if facts.gpu else ''}memory"
        rate = cost.steps * config.training.batch_size / cost.seconds
        print_on_main(
            f"about {_time(before + cost.seconds)} here for {cost.steps:,} steps, {rate:,.0f} images/s, {memory}"
        )
        if is_main():
            write_recipe(
                options.out, config, [f"{choice.flag}: {choice.reason}; from {choice.published}" for choice in choices]
            )
        print_on_main(f"written to {options.out}; start it by:\n  moco pretrain {shlex.quote(str(options.out))}")


def table_of(choices: list[Choice], title: str) -> Table:
    """Choices with their reasons, for people."""
    table = Table(title=title, title_justify="left")
    for column in ("option", "value", "reason", "scales from"):
        table.add_column(column, no_wrap=column == "option")
    for choice in choices:
        table.add_row(choice.flag, escape(f"{choice.value}"), escape(choice.reason), escape(choice.published))
    return table


def _given(init: str) -> tuple[Encoder, int | None]:
    """The encoder of given weights, and its fixed size. Raises UserError if they cannot be read or do not fit it."""
    trained = open_trained(Path(init))
    return replace(trained.config.encoder, init=init), fixed_size(trained.encoder)


def _fitting(facts: Facts, compute: Compute, source: Source, device: Device) -> tuple[Facts, Estimate]:
    """The facts with the batch that fits into memory, and what a run of it costs, both measured by a few real steps."""
    while True:
        config, _ = suggested(facts, compute)
        with suppress(torch.OutOfMemoryError):
            return facts, estimate(config, source, device)
        if config.training.batch_size < 4:
            raise UserError(f"{device.device}: its memory does not hold a step of {config.training.batch_size} images")
        gc.collect()  # frees what the failed step has left
        torch.cuda.empty_cache()
        facts = replace(facts, fits=config.training.batch_size // 2)


def _time(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds > 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"
