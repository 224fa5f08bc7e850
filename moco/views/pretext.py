"""The published recipes of a view, by name."""

import math
from dataclasses import dataclass

from moco.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True)
class Pretext:
    """What one random view of an image is made of; the operations follow each other in the order of the fields."""

    area: tuple[float, float] = (0.2, 1.0)
    """The crop's share of the image's area, uniform in this range."""
    log_ratio: tuple[float, float] = (math.log(3 / 4), math.log(4 / 3))
    """The crop's width over height, log-uniform in this range (torchvision's default)."""
    grey_first: bool = False
    """Grey-scale before the colour jitter, not after it (v1)."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation (factors in 1 +- strength) and hue (turns in +- strength)."""
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_probability: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    """Gaussian blur's standard deviation in pixels, uniform in this range."""
    flip_probability: float = 0.5
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET
    """Mean and standard deviation of red, green and blue, of values in 0..1."""


PRETEXTS = {
    # He et al. 2020, section 3.3 and the released code.
    "v1": Pretext(grey_first=True, jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0),
    # Chen et al. 2020 (arXiv 2003.04297) and the released code.
    "v2": Pretext(blur_probability=0.5),
    # v2 without blur, which destroys an image of 32 pixels.
    "cifar": Pretext(normalisation=CIFAR),
    # For the embedded data set, whose objects are told by their outline: a crop keeps at least half of the image.
    "shapes": Pretext(area=(0.5, 1.0), normalisation=CIFAR),
}


def get_pretext(name: str) -> Pretext:
    """The recipe of that name; UserError if there is none."""
    if name not in PRETEXTS:
        raise UserError(f"no views named {name!r}: there are {', '.join(PRETEXTS)}")
    return PRETEXTS[name]
