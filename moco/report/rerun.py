"""The command that runs a run again."""

import shlex
from dataclasses import fields, is_dataclass

from moco.runs.config import Config
from moco.runs.recipes.recipes import RECIPES

_SPELLED = {"source": "data", "download": "data.download"}


def rerun(config: Config, out: str) -> str:
    """`moco pretrain` with every option in which the run differs from its recipe, so with the same numbers."""
    recipe = RECIPES.get(config.recipe, next(iter(RECIPES.values())))
    words = ["moco", "pretrain", recipe.name]
    for room in fields(config):
        part, default = getattr(config, room.name), getattr(recipe.config, room.name)
        if is_dataclass(part):
            for option in fields(part):
                value = getattr(part, option.name)
                if value != getattr(default, option.name):
                    words += _spelled(_SPELLED.get(option.name, option.name.replace("_", "-")), value)
    return shlex.join([*words, "--out", out])


def _spelled(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        *room, last = name.split(".")
        return ["--" + ".".join([*room, last if value else f"no-{last}"])]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
