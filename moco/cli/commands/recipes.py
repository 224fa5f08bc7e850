"""moco recipes: the recipes, or one of them whole."""

import yaml
from rich.console import Console
from rich.table import Table

from moco.runs.options import to_dict
from moco.runs.recipes import RECIPES, get_recipe

console = Console(highlight=False)


def main(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        print("usage: moco recipes [RECIPE]      lists the recipes, or shows one whole")
    elif words:
        show_recipe(words[0])
    else:
        list_recipes()


def list_recipes() -> None:
    """A table of the recipes."""
    table = Table(title="recipes (moco recipes RECIPE shows one whole)", title_justify="left")
    for column in ("recipe", "what", "cost", "reaches"):
        table.add_column(column, no_wrap=column == "recipe")
    for recipe in RECIPES.values():
        table.add_row(recipe.name, recipe.about, recipe.cost, recipe.reaches)
    console.print(table)


def show_recipe(name: str) -> None:
    """A recipe: what it is, costs and reaches, its command, and every option."""
    recipe = get_recipe(name)
    console.print(f"{recipe.name}: {recipe.about}\n  cost     {recipe.cost}\n  reaches  {recipe.reaches}")
    console.print(f"  from     {recipe.source}\n  run      {recipe.command}\n")
    console.print(yaml.safe_dump(to_dict(recipe.config), sort_keys=False), markup=False)
