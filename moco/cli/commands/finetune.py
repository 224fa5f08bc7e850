"""moco finetune: a classifier is trained from an encoder, evaluated, compared (appendices A.6 and A.7)."""

from pathlib import Path
from typing import Any

from moco.cli.commands.transfer import Kind
from moco.cli.commands.transfer import main as transfer
from moco.cli.options import Finetune, Transfer
from moco.transfer.classification.recipes import CLASSIFICATION


def main(words: list[str]) -> None:
    """The recipe's options are the defaults."""
    transfer(KIND, words)


def _suggest(config: Any, start: str) -> tuple[Any, list[tuple[str, str, str]]]:
    """Length and learning rate of any recipe, and of one's own images all else that follows from them."""
    import logging

    from moco.data.survey import survey
    from moco.runtime.device import choose_device
    from moco.runtime.errors import UserError
    from moco.transfer.classification.labels import imbalance
    from moco.transfer.classification.sets import open_sets
    from moco.transfer.classification.suggest import Facts, seen_by, suggest

    sets = open_sets(config)
    found = survey(sets.train, sample=50)
    if not found.sizes:
        raise UserError(f"--data {config.data.source}: no training image can be read")
    sides = sorted(min(size) for size, number in found.sizes.items() for _ in range(number))
    smallest = min(count for count in sets.counts if count)
    gpu = choose_device(config.compute.device).is_gpu
    suggested, choices = suggest(config, Facts(len(sets.train), smallest, sides[len(sides) // 2], gpu), seen_by(start))
    if unequal := imbalance(sets.counts, sets.classes):
        logging.getLogger("moco").warning(unequal)
    return suggested, [(choice.flag, _spelled(choice.value), choice.reason) for choice in choices]


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _predict(path: Path, options: Transfer) -> None:
    """Not reached: `moco predict` is a command of its own."""
    raise AssertionError


def _sources() -> dict[str, str]:
    from moco.data.sources.registry import KINDS

    return {kind.spelling(name): kind.about for name, kind in KINDS.items()}


KIND = Kind("finetune", Finetune, CLASSIFICATION, _suggest, _predict, _sources, default="own")
