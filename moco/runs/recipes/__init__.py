"""Published and tested settings by name: what each costs, what it should reach, and the command that runs it."""

from moco.runs.recipes.recipe import Recipe, read_recipe, write_recipe
from moco.runs.recipes.recipes import RECIPES, get_recipe

__all__ = ["RECIPES", "Recipe", "get_recipe", "read_recipe", "write_recipe"]
