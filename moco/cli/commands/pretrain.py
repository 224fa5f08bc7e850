"""moco pretrain: an encoder is trained by a recipe."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from moco.cli.options import Pretrain, parse
from moco.runs.config import Config, check
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
    recipe, words = get_recipe(words[0]), _with_resume(words[1:])
    prog = f"moco pretrain {recipe.name}"
    options = parse(Pretrain, words, prog, Pretrain(recipe.config))
    folder = options.out or Path("runs") / Path(recipe.name).stem

    def continued(config: Config) -> Config:
        """What the command line does not say is as it was when the run was started."""
        return parse(Pretrain, words, prog, Pretrain(replace(config, recipe=recipe.name))).config

    if options.resume == "no":
        check(options.config)  # before anything heavy is imported
    pretrain(options.config, folder, options.resume, continued)


def _with_resume(words: list[str]) -> list[str]:
    """--resume alone is --resume yes."""
    values = ("no", "yes", "auto")
    whole = []
    for i, word in enumerate(words):
        whole.append(word)
        if word == "--resume" and (i + 1 == len(words) or words[i + 1] not in values):
            whole.append("yes")
    return whole


def pretrain(
    config: Config, folder: Path, resume: str = "no", continued: Callable[[Config], Config] | None = None
) -> Run:
    """Trains a run in its folder; stopped, leaves by SystemExit with the signal's usual exit code.

    Args:
        resume: as of `moco pretrain`.
        continued: from the configuration of the run that is there, the one that it goes on with.
    """
    from moco.cli.commands.common import computing, say
    from moco.data import source_of
    from moco.report import draw_curves, draw_views
    from moco.runtime.ranks import is_main, on_main, world_size
    from moco.runtime.signals import Stopped
    from moco.training import pretrain as train
    from moco.training import start_logging
    from moco.training.build import check_mechanism
    from moco.views import Views, get_pretext

    with computing(config.compute) as device:
        before = on_main(lambda: _config_of(folder, resume))
        if before is not None:
            wanted = before if continued is None else continued(before)
            on_main(lambda: Run.open(folder).require(wanted))
            config = wanted
        if config.compute.precision == "auto":
            config = replace(config, compute=replace(config.compute, precision="bf16" if device.bf16 else "fp32"))
        get_pretext(config.views.views)
        check(config, world_size())
        check_mechanism(config)  # what is wrong with the encoder's name is said before the images are opened
        source = source_of(config)
        check(config, world_size(), len(source.train))
        run = Run(folder)
        if before is None:
            on_main(lambda: Run.create(folder, config) and None)
        start_logging(run, is_main())
        if before is None and is_main():
            views = Views(config.views.views, config.views.image_size, config.training.seed)
            draw_views(source.train, views, folder / "views.png")
        try:
            with ExitStack() as held:
                on_main(lambda: held.enter_context(run.locked(wait=0 if before is None else 15)))
                train(config, source, run, device, resume=before is not None)
        except Stopped as stopped:
            say(f"stopped after step {stopped.step}; continue it by:\n  {_command(config, folder)} --resume")
            raise SystemExit(128 + stopped.signal_number) from None
        if is_main():
            draw_curves(run)
        say(f"done: {folder} holds the checkpoints, metrics.jsonl, curves.png, views.png and tensorboard/")
        return run


def _config_of(folder: Path, resume: str) -> Config | None:
    """The configuration of the run to continue; None to start one. Raises UserError if it is not there."""
    if resume == "no" or (resume == "auto" and not Run(folder).exists):
        return None
    return Run.open(folder).config()


def _command(config: Config, folder: Path) -> str:
    out = [] if folder == Path("runs") / Path(config.recipe).stem else ["--out", str(folder)]
    return shlex.join(["moco", "pretrain", config.recipe, *out])
