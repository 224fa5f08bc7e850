"""The command that runs a run again."""

import re
import shlex
from dataclasses import fields, is_dataclass
from typing import Any

from moco.runs.config import Config, in_steps
from moco.runs.options import flag, with_options
from moco.runs.recipes.recipes import RECIPES


def rerun(config: Config, out: str) -> str:
    """`moco pretrain` with every option that differs from the run's recipe, so that it gives the same numbers."""
    recipe = RECIPES.get(config.recipe, next(iter(RECIPES.values())))
    words, defaults = ["moco", "pretrain", recipe.name], _defaults(recipe.config, config)
    for group in fields(config):
        options, default = getattr(config, group.name), getattr(defaults, group.name)
        if is_dataclass(options):
            for option in fields(options):
                value = getattr(options, option.name)
                if value != getattr(default, option.name):
                    words += _spelled(flag(option.name), value)
    return shlex.join([*words, "--out", out])


def _defaults(recipe: Config, config: Config) -> Config:
    """What the options of a run have if the command does not name them."""
    length, own = config.training, recipe.training
    if not length.iterations or own.iterations:
        return recipe
    scaled = in_steps(with_options(recipe, epochs=length.epochs, iterations=length.iterations), set())
    return with_options(scaled, epochs=own.epochs, iterations=None)


def rerun_transfer(config: dict[str, Any], recipe: dict[str, Any], out: str) -> str:
    """`moco detect` or `moco segment` with every option that differs from the recipe's; without a recipe all of them.

    Args:
        config, recipe: groups of options, as config.yaml holds them.
    """
    start = config.get("encoder", {}).get("init", "random")
    words = ["moco", str(config.get("task", "detect")), str(start), "--recipe", str(config.get("recipe", ""))]
    for group, options in config.items():
        if isinstance(options, dict) and group not in ("compute", "log"):
            default = recipe.get(group, {})
            for name, value in options.items():
                if name != "init" and value is not None and (name not in default or value != default[name]):
                    words += _spelled(flag(name), tuple(value) if isinstance(value, list) else value)
    return shlex.join([*words, "--out", out])


def _spelled(flag: str, value: object) -> list[str]:
    """--shuffle or --no-shuffle, --data.no-download; --milestones 120 160."""
    if isinstance(value, bool):
        return [flag if value else re.sub(r"^(--(?:\w+\.)?)", r"\1no-", flag)]
    return [flag, *map(str, value if isinstance(value, tuple) else (value,))]
