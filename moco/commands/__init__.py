"""What each sub-command does, in terms of the rooms."""

from moco.commands.common import console
from moco.commands.experiments import reproduce
from moco.commands.judging import knn, linear
from moco.commands.reading import doctor, report
from moco.commands.recipes import list_recipes, show_recipe, suggest
from moco.commands.sets import data, list_sources, pack
from moco.commands.training import demo, pretrain

__all__ = [
    "console",
    "data",
    "demo",
    "doctor",
    "knn",
    "linear",
    "list_recipes",
    "list_sources",
    "pack",
    "pretrain",
    "report",
    "reproduce",
    "show_recipe",
    "suggest",
]
