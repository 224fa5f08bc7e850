"""The command that runs a run again."""

import re
import shlex
from dataclasses import fields, is_dataclass

from moco.runs.config import Config
from moco.runs.options import flag
from moco.runs.recipes.recipes import RECIPES


def rerun(config: Config, out: str) -> str:
    """`moco pretrain` with every option that differs from the run's recipe, so that it gives the same numbers."""
    recipe = RECIPES.get(config.recipe, next(iter(RECIPES.values())))
    words = ["moco", "pretrain", recipe.name]
    for group in fields(config):
        options, default = getattr(config, group.name), getattr(recipe.config, group.name)
        if is_dataclass(options):
            for option in fields(options):
                value = getattr(options, option.name)
                if value != getattr(default, option.name):
                    words += _spelled(flag(option.name), value)
    return shlex.join([*words, "--out", out])


def _spelled(flag: str, value: object) -> list[str]:
    """--shuffle or --no-shuffle, --data.no-download; --milestones 120 160."""
    if isinstance(value, bool):
        return [flag if value else re.sub(r"^(--(?:\w+\.)?)", r"\1no-", flag)]
    return [flag, *map(str, value if isinstance(value, tuple) else (value,))]
