"""moco pretrain: an encoder is trained by a recipe."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from moco.cli.options import Pretrain
from moco.cli.parse import parse
from moco.runs.config import AUTO, Config, check, in_steps
from moco.runs.folder import Run
from moco.runs.recipes import get_recipe
from moco.runtime.errors import UserError


def main(words: list[str]) -> None:
    """The recipe comes first: its options are the defaults."""
    if not words or words[0] in ("-h", "--help"):
        from moco.cli.commands.recipes import list_recipes

        print("usage: moco pretrain RECIPE [--options]      (moco pretrain RECIPE --help lists them)\n")
        list_recipes()
        return
    if words[0].startswith("-"):
        raise UserError("moco pretrain RECIPE [--options]: the recipe comes first (moco recipes lists them)")
    recipe, words = get_recipe(words[0]), with_resume(words[1:])
    prog = f"moco pretrain {recipe.name}"
    options = parse(Pretrain, words, prog, Pretrain(recipe.config))
    folder = options.out or Path("runs") / Path(recipe.name).stem
    if options.config.training.iterations and not recipe.config.training.iterations:
        options = replace(options, config=in_steps(options.config, _named(words)))

    def continued(config: Config) -> Config:
        """What the command line leaves open is as it was when the run was started."""
        return parse(Pretrain, words, prog, Pretrain(replace(config, recipe=recipe.name))).config

    def started(config: Config) -> Config:
        """From given weights, what the command line leaves open follows from them, where the recipe has random ones."""
        given = config.encoder.init
        return config if given == "random" or given == recipe.config.encoder.init else _from_given(config, words)

    if options.resume == "no":
        check(options.config)  # before anything heavy is imported
    pretrain(options.config, folder, options.resume, continued, started)


def with_resume(words: list[str]) -> list[str]:
    """--resume alone is --resume yes."""
    values = ("no", "yes", "auto")
    whole = []
    for i, word in enumerate(words):
        whole.append(word)
        if word == "--resume" and (i + 1 == len(words) or words[i + 1] not in values):
            whole.append("yes")
    return whole


def _named(words: list[str]) -> set[str]:
    """The options that a command line names."""
    named = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    return named | {name.removeprefix("no_") for name in named}  # --no-small-stem


def _from_given(config: Config, words: list[str]) -> Config:
    """The recipe's options changed to start from given weights, but for those that the command line names; printed."""
    from moco.cli.commands.common import print_on_main
    from moco.cli.commands.suggest import table_of
    from moco.encoders import build_encoder, fixed_size
    from moco.runs.suggest import from_given
    from moco.transfer.start import encoder_of

    named = _named(words)
    given = encoder_of(config.encoder.init, config.encoder)
    fixed = fixed_size(build_encoder(config.encoder.encoder if "encoder" in named else given.encoder))
    config, choices = from_given(config, given, named, fixed)
    print_on_main(table_of(choices, f"{config.recipe} from {config.encoder.init}"))
    return config


def pretrain(
    config: Config,
    folder: Path,
    resume: str = "no",
    continued: Callable[[Config], Config] | None = None,
    started: Callable[[Config], Config] | None = None,
) -> Run:
    """Trains a run in its folder; stopped, leaves by SystemExit with the signal's usual exit code.

    Args:
        resume: as of `moco pretrain`.
        continued: from the configuration of the run that is there, the one that it goes on with.
        started: from the configuration of a new run, the one that it starts with.
    """
    from moco.cli.commands.common import print_on_main, together
    from moco.data import source_of
    from moco.report import draw_curves, draw_views
    from moco.runtime.ranks import gather_objects, is_main, on_main
    from moco.runtime.signals import Stopped
    from moco.training import device_of, resolved, start_logging
    from moco.training import pretrain as train
    from moco.views import Views

    with together():
        start_logging(None, is_main())
        config, resumed = on_main(lambda: _to_train(config, folder, resume, continued, started))
        device = device_of(config.compute)
        source = source_of(config)
        images = gather_objects(len(source.train))
        on_main(lambda: _check_images(config, images))
        config = on_main(lambda: resolved(config, source, device))
        device = device_of(config.compute)
        run = Run(folder)
        if not resumed:
            on_main(lambda: Run.create(folder, config) and None)
        start_logging(run, is_main())
        if not resumed and is_main():
            views = Views(config.views.views, config.views.image_size, config.training.seed)
            draw_views(source.train, views, folder / "views.png")
        try:
            with ExitStack() as held:
                # The workers of a process that was killed hold its lock for a few seconds more.
                on_main(lambda: held.enter_context(run.locked(wait=15 if resumed else 0)))
                train(config, source, run, device, resumed)
        except Stopped as stopped:
            print_on_main(f"stopped after step {stopped.step}; continue it by:\n  {_command(config, folder)} --resume")
            raise SystemExit(128 + stopped.signal_number) from None
        if is_main():
            draw_curves(run)
        print_on_main(f"done: {folder} holds the checkpoints, metrics.jsonl, curves.png, views.png and tensorboard/")
        return run


def _to_train(
    config: Config,
    folder: Path,
    resume: str,
    continued: Callable[[Config], Config] | None,
    started: Callable[[Config], Config] | None,
) -> tuple[Config, bool]:
    """What is trained, and whether it is the run in the folder that is continued.

    Raises UserError for what is wrong with it, as far as that can be known before the images are opened.
    """
    from moco.runtime.ranks import world_size
    from moco.training.build import check_mechanism
    from moco.training.loggers import check_logger
    from moco.views import get_pretext

    resumed = resume == "yes" or (resume == "auto" and Run(folder).exists)
    if resumed:
        run = Run.open(folder)
        before = run.config()
        config = before if continued is None else continued(before)
        as_before = {name: getattr(before.compute, name) for name in AUTO if getattr(config.compute, name) == "auto"}
        config = replace(config, compute=replace(config.compute, **as_before))
        run.require(config)
    elif started is not None:
        config = started(config)
    get_pretext(config.views.views)
    check(config, world_size())
    check_logger(config)
    check_mechanism(config, new=not resumed)
    return config, resumed


def _check_images(config: Config, images: list[int]) -> None:
    """Raises UserError for too few training images, or if the ranks, each of which opens them, find other numbers."""
    check(config, len(images), min(images))
    if len(set(images)) > 1:
        each = ", ".join(f"{number:,} on rank {rank}" for rank, number in enumerate(images))
        raise UserError(f"--data: the ranks find different numbers of training images: {each}")


def _command(config: Config, folder: Path) -> str:
    out = [] if folder == Path("runs") / Path(config.recipe).stem else ["--out", str(folder)]
    return shlex.join(["moco", "pretrain", config.recipe, *out])
