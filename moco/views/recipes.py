"""The published recipes of views, by name."""

import math
from dataclasses import dataclass, replace

from moco.runtime.errors import UserError, did_you_mean

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
    solarise_probability: float = 0.0
    """Of inverting the values from `SOLARISE_FROM` up."""
    flip_probability: float = 0.5
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET
    """Mean and standard deviation of red, green and blue, of values in 0..1."""


# He et al. 2020, section 3.3 and the released code.
_V1 = Pretext(grey_first=True, jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0)
# Chen et al. 2020 (arXiv 2003.04297) and the released code.
_V2 = Pretext(blur_probability=0.5)
# Chen, Xie and He 2021 (arXiv 2104.02057): BYOL's two views, which differ.
_V3 = Pretext(jitter=(0.4, 0.4, 0.2, 0.1), blur_probability=1.0)
_V3_OTHER = replace(_V3, blur_probability=0.1, solarise_probability=0.2)
# SimCLR (arXiv 2002.05709, appendix A) at strength 1.
_SIMCLR = Pretext(area=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5)

PRETEXTS: dict[str, tuple[Pretext, Pretext]] = {
    "v1": (_V1, _V1),
    "v2": (_V2, _V2),
    "v3": (_V3, _V3_OTHER),
    # The released code's for ViTs: smaller crops.
    "v3-vit": (replace(_V3, area=(0.08, 1.0)), replace(_V3_OTHER, area=(0.08, 1.0))),
    "simclr": (_SIMCLR, _SIMCLR),
    # v2 without blur, which destroys an image of 32 pixels.
    "cifar": (Pretext(normalisation=CIFAR),) * 2,
    # For the embedded data set, whose classes are the outlines: a crop keeps at least half of the image.
    "shapes": (Pretext(area=(0.5, 1.0), normalisation=CIFAR),) * 2,
}
"""The first and the second view of an image, by the recipe's name."""


def get_pretext(name: str) -> tuple[Pretext, Pretext]:
    """The recipe of that name; UserError if there is none."""
    if name not in PRETEXTS:
        raise UserError(f"no views named {name!r}{did_you_mean(name, PRETEXTS)} (there are {', '.join(PRETEXTS)})")
    return PRETEXTS[name]
