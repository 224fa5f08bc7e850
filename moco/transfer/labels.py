"""Some images of a set: those whose labels are trained on, those that are evaluated."""

import torch

from moco.data.order import shuffled
from moco.runtime.errors import UserError
from moco.transfer.config import number_of


def labelled(labels: str, images: int, seed: int, what: str) -> list[int]:
    """Which of so many images `--labels` takes: the first ones of a random order of the seed, ascending.

    So the images of a smaller number are among those of a larger one. Raises UserError if there are not so many.

    Args:
        what: the images are called in that error.
    """
    number = number_of(labels, images)
    if number > images:
        raise UserError(f"--labels {labels}: there are {images} {what}")
    chosen: list[int] = shuffled(torch.arange(number), images, seed, 1).sort().values.tolist()
    return chosen


def equally_spaced(images: int, number: int | None) -> list[int]:
    """So many of the images, at equal distances; None, or more than there are: all."""
    places = torch.linspace(0, images - 1, min(number or images, images), dtype=torch.float64)
    chosen: list[int] = places.round().long().tolist()
    return chosen
