"""Weights that come along: trained by this project, in moco/weights, whose README.md has their commands and results."""

from dataclasses import replace
from pathlib import Path

from moco.encoders.files import Weights, read_file
from moco.runtime.errors import UserError

FOLDER = Path(__file__).parents[1] / "weights"
INCLUDED = ("shapes-cpu", "cifar10-cpu")
"""Their names, which are those of the recipes that trained them."""


def read_included(name: str) -> Weights:
    """The weights of a name in `INCLUDED`.

    Raises:
        UserError: they are not in this installation, as a wheel holds the first alone.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"{name}: does not come with this installation: moco/weights of the repository holds {path.name}: give "
            "that file's path"
        )
    return replace(read_file(path), source=name)
