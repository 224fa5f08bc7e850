"""Published and tested settings by name."""

from pathlib import Path

from moco.runs.recipes.imagenet import IMAGENET
from moco.runs.recipes.recipe import Recipe, read_recipe
from moco.runs.recipes.small import SMALL
from moco.runs.recipes.web import WEB
from moco.runtime.errors import UserError, did_you_mean

RECIPES = {recipe.name: recipe for recipe in [*SMALL, *IMAGENET, *WEB]}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name, or in that .yaml file; UserError that names the nearest if there is none."""
    if name.endswith((".yaml", ".yml")):
        return read_recipe(Path(name))
    if name in RECIPES:
        return RECIPES[name]
    hint = did_you_mean(name, RECIPES, cutoff=0.4) or f": there are {', '.join(RECIPES)}"
    raise UserError(f"no recipe named {name!r}{hint}")
