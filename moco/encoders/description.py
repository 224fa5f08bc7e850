"""What one must know of an encoder beside its weights, to build it and to show it an image."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moco.views.recipes import IMAGENET

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of red, green and blue, of values in 0..1."""


@dataclass(frozen=True)
class Description:
    """It travels with exported weights: in the header of a safetensors file, in a hub folder's config.json."""

    encoder: str
    """Its name for `build_encoder`."""
    small_stem: bool = False
    image_size: int = 224
    """Height and width of the images that it was trained on, in pixels."""
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    heads: int | None = None
    """Attention heads of a ViT's block; None: it has none."""

    @property
    def label(self) -> str:
        """For messages and documents: `resnet18 with the small stem`."""
        return self.encoder + (" with the small stem" if self.small_stem and self.encoder != "tiny" else "")

    def as_values(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def known(values: Any) -> dict[str, Any]:
    """What can be used of a description that was read from a file, which may hold anything: `Weights`' fields."""
    if not isinstance(values, Mapping):
        return {}
    types = {"encoder": str, "small_stem": bool, "image_size": int, "heads": int}
    found = {name: values[name] for name, kind in types.items() if type(values.get(name)) is kind}
    return found | {name: numbers for name in ("mean", "std") if (numbers := three_numbers(values.get(name)))}


def three_numbers(values: Any) -> tuple[float, ...] | None:
    """Three floats; None if it is anything else."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    return tuple(map(float, values)) if all(isinstance(value, int | float) for value in values) else None
