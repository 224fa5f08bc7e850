"""What moco detect and moco segment share: a network is trained for a task, evaluated, compared, used."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moco.cli.commands.evaluate_transfer import evaluate
from moco.cli.commands.pretrain import with_resume
from moco.cli.options import Transfer
from moco.cli.parse import parse
from moco.runs.options import check_ranges, differences
from moco.runtime.errors import UserError, require_all
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.config import TransferCompute, TransferConfig, as_before, check, scaled
from moco.transfer.recipes import TransferRecipe, find_recipe
from moco.transfer.run import RUNS, task_of

console = Console(highlight=False)


@dataclass(frozen=True)
class Kind:
    """A task as a command.

    Attributes:
        task: its name, as the command has it.
        options: of the command.
        recipes: by name.
        suggest: from a configuration and what the encoder starts from (in a comparison, the first start that is not
            random), the configuration for these data and this machine, and rows of option, value and reason. Heavy.
        predict: a trained network, given its run, applied to images.
        sources: what --data may name, by kind.
        default: the recipe where none is named; None: one must be.
    """

    task: str
    options: type[Transfer]
    recipes: Mapping[str, TransferRecipe]
    suggest: Callable[[Any, str], tuple[Any, list[tuple[str, str, str]]]]
    predict: Callable[[Path, Transfer], None]
    sources: Callable[[], Mapping[str, str]]
    default: str | None = None


def main(kind: Kind, words: list[str]) -> None:
    """`moco TASK [START] --recipe NAME ...`, or `moco TASK RUN --eval-only | --predict ...` on a run of the task."""
    prog = f"moco {kind.task}"
    name, words = _taken(words, "--recipe")
    helped = not {"-h", "--help"}.isdisjoint(words)
    if not words or (helped and name is None):
        list_recipes(kind)
        return
    if name is None and not any(word.startswith(("--eval-only", "--predict")) for word in words):
        name = kind.default
    if name is None:
        _use(kind, words, prog)
        return
    recipe = find_recipe(name, kind.recipes)
    words = with_resume(words)

    def over(config: TransferConfig) -> Transfer:
        """The command line, over a configuration for what it leaves open."""
        return parse(kind.options, words, f"{prog} --recipe {name}", kind.options(config=config))

    options = over(recipe.config)
    check_ranges(options)
    require_all(
        [
            (not options.eval_only and not options.predict, f"{prog} --recipe trains: leave it out to evaluate a run"),
            (
                options.start is None or options.config.encoder.init == "random",
                f"{prog}: START and --init name the same: give one of them",
            ),
            (
                bool(options.compare)
                or options.start is not None
                or any(word.split("=")[0] == "--init" for word in words)
                or (options.resume == "yes" and options.trials == 1 and not options.over_labels),
                f"{prog} START: what it starts from is missing: a run's folder, weights, or random",
            ),
            (not (options.compare and options.start), f"{prog}: --compare names what runs start from: leave START out"),
        ]
    )
    _train(kind, recipe, options, lambda config: over(config).config, words)


def _train(
    kind: Kind,
    recipe: TransferRecipe,
    options: Transfer,
    parsed: Callable[[TransferConfig], TransferConfig],
    words: list[str],
) -> None:
    """Trains the run, or the runs of a comparison, that a command line describes."""
    from moco.cli.commands.common import print_on_main, together
    from moco.runtime.ranks import is_main, on_main
    from moco.training.log import start_logging
    from moco.transfer.compare import start_of, started

    folder = options.out or Path("runs") / recipe.name
    several = options.compare or options.over_labels or options.trials > 1
    with together():
        start_logging(None, is_main())
        if not several and _continued(kind, recipe, options, parsed, folder):
            return
        starts = [start_of(entry)[0] for entry in options.compare] or [_init(options)]
        reference = next((start for start in starts if start != "random"), "random")
        base = replace(recipe.config, data=options.config.data)
        base = on_main(lambda: started(reference, base))
        planned = _planned(kind, base, reference, parsed, words)  # on all ranks: shards are opened by all of them
        config, reasons = on_main(lambda: planned)
        length = f"{config.training.iterations:,} steps of {config.training.batch_size} images"
        print_on_main(
            f"{recipe.name}: {recipe.about}\ncost: {recipe.cost} (this run: {length})\nshould reach: {recipe.reaches}"
        )
        if len(reasons) > 1:
            print_on_main(_table(f"{recipe.name} for {reference}, {config.data.source}", reasons))
        if several:
            _compare(kind, recipe, options, config, reference, folder, parsed, words)
        else:
            train_one(kind, config, folder, continued=False)


def _init(options: Transfer) -> str:
    """What a run that is alone starts from."""
    return options.start or options.config.encoder.init


def _continued(
    kind: Kind,
    recipe: TransferRecipe,
    options: Transfer,
    parsed: Callable[[TransferConfig], TransferConfig],
    folder: Path,
) -> bool:
    """Continues the run in the folder if --resume wants it and it is there. Raises UserError where it must be there."""
    from moco.runtime.ranks import on_main

    if options.resume == "no":
        return False
    if not on_main(lambda: RUNS[kind.task](folder).exists):
        if options.resume == "yes":
            on_main(lambda: RUNS[kind.task].open(folder) and None)
        return False
    before = on_main(lambda: RUNS[kind.task].open(folder).config())
    wanted = replace(before, recipe=recipe.name)  # another START or recipe than the run's is an error
    if options.start is not None:
        wanted = replace(wanted, encoder=replace(before.encoder, init=options.start))
    train_one(kind, as_before(parsed(wanted), before), folder, continued=True)
    return True


def _compare(
    kind: Kind,
    recipe: TransferRecipe,
    options: Transfer,
    config: TransferConfig,
    reference: str,
    folder: Path,
    parsed: Callable[[TransferConfig], TransferConfig],
    words: list[str],
) -> None:
    """Trains a run of each start, number of labels and seed, and writes a table of their results."""
    from moco.cli.commands.common import print_on_main
    from moco.runtime.ranks import on_main
    from moco.transfer.compare import compare

    command = shlex.join(["moco", kind.task, "--recipe", recipe.name, *words])

    def train(own: TransferConfig, path: Path) -> None:
        train_one(kind, own, path, on_main(lambda: RUNS[kind.task](path).exists), command)

    def plan(own: TransferConfig) -> TransferConfig:
        """As this run would be alone."""
        alone = _fixed(own, replace(recipe.config, data=own.data, encoder=own.encoder))
        # The schedule on the command line is for its own --protocol: one that an entry names has its own.
        other = _protocol(own) != _protocol(config)

        def line(base: TransferConfig) -> TransferConfig:
            given = parsed(base)
            return _fixed(own, replace(given, training=base.training) if other else given)

        planned = _planned(kind, alone, reference, line, words)[0]
        return on_main(lambda: planned)

    inits, labels = options.compare or (_init(options),), options.over_labels or (config.data.labels,)
    done = compare(config, inits, labels, options.trials, folder, train, plan)
    on_main(lambda: done.write(folder))
    print_on_main(_table(f"{recipe.name}: mean and standard deviation", done.table()))
    print_on_main(f"written to {folder}: comparison.md, comparison.png, comparison.json and the runs")


def _planned(
    kind: Kind,
    base: TransferConfig,
    reference: str,
    parsed: Callable[[TransferConfig], TransferConfig],
    words: list[str],
) -> tuple[TransferConfig, list[list[str]]]:
    """The configuration of a new run: suggestions for one's own data, the linear rule for another batch; what the
    command line names stands. And the rows of a table of reasons. Raises UserError for what cannot be."""
    from moco.runtime.ranks import world_size

    base, reasons = kind.suggest(parsed(base), reference)
    config = parsed(base)
    named = {re.sub("^--no-", "--", word.split("=")[0]) for word in words}
    options = {flag.removeprefix("--").replace("-", "_") for flag in named}
    training, about = scaled(config.training, base.training, options)
    config = replace(config, training=training)
    check(config, world_size())
    rows = [list(row) for row in reasons if row[0] not in named]
    rows += [["--batch-size", str(training.batch_size), about]] if about else []
    return config, [["option", "value", "reason"], *rows]


def suggest_own(
    config: Any,
    sources: str,
    open_sets: Callable[[Any], tuple[Any, Any]],
    examine: Callable[[Any, float | None], Any],
    suggest: Callable[[Any, Any], tuple[Any, list[Any]]],
) -> tuple[Any, list[tuple[str, str, str]]]:
    """Of a recipe for one's own images, what follows from them and this machine; another recipe stays as it is.

    Args:
        sources: what --data may be, in words.
        examine: from training images and the GPU's memory in GB, if there is one, the facts that choices follow from.
        suggest: from these and the recipe's configuration, the configuration and its choices.
    """
    if not config.recipe.startswith("own-"):
        return config, []
    if not config.data.source:
        raise UserError(f"--recipe {config.recipe}: --data is missing: {sources}")
    from moco.runtime.device import choose_device

    device = choose_device(config.compute.device)
    memory = device.free_bytes() / 1e9 if device.is_gpu else None
    suggested, choices = suggest(examine(open_sets(config)[0], memory), config)
    return suggested, [(choice.flag, str(choice.value), choice.reason) for choice in choices]


def _protocol(config: TransferConfig) -> str | None:
    return config.model.protocol if isinstance(config, ClassificationConfig) else None


def _fixed(own: TransferConfig, config: TransferConfig) -> TransferConfig:
    """The configuration with what one run of a comparison differs in."""
    seeded = replace(config.training, seed=own.training.seed)
    config = replace(config, encoder=own.encoder, data=own.data, training=seeded)
    if isinstance(own, ClassificationConfig) and isinstance(config, ClassificationConfig):
        config = replace(config, model=replace(config.model, protocol=own.model.protocol))
    return config


def train_one(kind: Kind, config: TransferConfig, folder: Path, continued: bool, command: str = "") -> None:
    """Trains one run, new or continued, up to its page. Stopped, leaves by SystemExit with the usual exit code.

    `command`: what continues it, where it is one of several runs of a command.
    """
    from moco.cli.commands.common import print_on_main
    from moco.report.transfer_page import write_transfer_page
    from moco.runtime.ranks import on_main
    from moco.runtime.signals import Stopped
    from moco.transfer.tasks import train_run

    try:
        measured = train_run(config, folder, continued)
    except Stopped as stopped:
        alone = shlex.join(["moco", kind.task, "--recipe", config.recipe, "--out", str(folder), "--resume"])
        print_on_main(f"stopped after step {stopped.step}; continue it by:\n  {command or alone}")
        raise SystemExit(128 + stopped.signal_number) from None
    on_main(lambda: write_transfer_page(folder, folder / "report.html"))
    numbers = ", ".join(f"{name} {value:.1f}" for name, value in measured.numbers.items())
    print_on_main(f"{numbers}\ndone: {folder} holds results.json, report.html, pictures and the checkpoints")


def _use(kind: Kind, words: list[str], prog: str) -> None:
    """A run of the task, evaluated again or applied to images."""
    options = parse(kind.options, words, prog)
    check_ranges(options)
    if options.start is None or not (options.eval_only or options.predict):
        raise UserError(f"{prog}: --recipe NAME is missing ({', '.join(kind.recipes)}); {prog} lists them")
    path = Path(options.start)
    if task_of(path) != kind.task:
        raise UserError(f"{path}: is no run of {prog}: train one by {prog} {path} --recipe NAME")
    alone = options.trials == 1 and not options.over_labels and not options.compare and options.resume == "no"
    if not alone or (options.eval_only and options.predict):
        others = "--trials, --compare, --over-labels and --resume train"
        raise UserError(f"{prog} {path}: give --eval-only or --predict, one of them alone ({others})")
    used = {"source", *(f.name for f in fields(TransferCompute))}
    if ignored := differences(kind.options().config, options.config, used):
        raise UserError(f"{prog} {path}: the run has options of its own: leave out {', '.join(ignored)}")
    if options.predict:
        kind.predict(path, options)
        return
    evaluate(kind.task, kind.options().config, path, options)


def list_recipes(kind: Kind) -> None:
    """What the command does, its recipes and its data."""
    used = "" if kind.task == "finetune" else " | --predict IMAGES"
    print(
        f"usage: moco {kind.task} START --recipe RECIPE [--options]    "
        f"(moco {kind.task} --recipe RECIPE --help lists them)\n"
        f"       moco {kind.task} RUN --eval-only{used}      (RUN: what the first line trained)\n"
    )
    rows = [[recipe.name, recipe.about, recipe.cost, recipe.reaches] for recipe in kind.recipes.values()]
    console.print(_table("recipes", [["recipe", "what", "cost", "should reach"], *rows]))
    rows = [[name, about] for name, about in kind.sources().items()]
    console.print(_table("--data", [["kind", "what"], *rows]))


def _table(title: str, rows: list[list[str]] | list[Any]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(rows[0]):
        table.add_column(column, no_wrap=number == 0)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table


def _taken(words: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, None if it is not there, and the other words. UserError if the value is missing."""
    for place, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2], words[:place] + words[place + 1 :]
        if word == flag:
            if place + 1 == len(words) or words[place + 1].startswith("-"):
                raise UserError(f"{flag}: its value is missing")
            return words[place + 1], words[:place] + words[place + 2 :]
    return None, words
