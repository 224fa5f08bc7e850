"""What a transfer recipe is, and one found by its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moco.runtime.errors import UserError, did_you_mean
from moco.transfer.config import TransferConfig


@dataclass(frozen=True)
class TransferRecipe:
    """A published or tested setting.

    Attributes:
        about: what it is, in a sentence.
        cost: what it takes.
        reaches: what it should reach.
        config: every option.
        source: where the setting is from.
    """

    about: str
    cost: str
    reaches: str
    config: TransferConfig
    source: str

    @property
    def name(self) -> str:
        return self.config.recipe


@dataclass(frozen=True)
class Choice:
    """An option that follows from one's own images and machine, its value and why."""

    flag: str
    value: Any
    reason: str


def find_recipe(name: str, recipes: Mapping[str, TransferRecipe]) -> TransferRecipe:
    """The recipe of that name. UserError that names the nearest if there is none."""
    if name in recipes:
        return recipes[name]
    hint = did_you_mean(name, recipes, cutoff=0.4) or f": there are {', '.join(recipes)}"
    raise UserError(f"--recipe {name}: no such recipe{hint}")
