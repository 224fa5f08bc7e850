"""By which mean and standard deviation images are normalised: those of what a run starts from."""

from pathlib import Path

from moco.encoders import Normalisation, Weights
from moco.encoders.description import three_numbers
from moco.encoders.published import timm_normalisation
from moco.runs.folder import read_values
from moco.runs.weights import read_weights
from moco.runtime.errors import UserError
from moco.views import get_pretext
from moco.views.recipes import CIFAR, IMAGENET

NORMALISATIONS = {"imagenet": IMAGENET, "cifar": CIFAR, "auto": IMAGENET}


def normalisation_of(text: str) -> Normalisation:
    """Mean and standard deviation of R, G and B, each in 0..1, from `imagenet`, `cifar` or `R,G,B/R,G,B`.

    `auto` is ImageNet's: it stands in runs from before it was decided by the given weights.

    Raises UserError for anything else.
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (three_numbers([float(number) for number in half.split(",")]) for half in text.split("/"))
    except ValueError:
        mean = std = None
    if mean is None or std is None or min(std) <= 0:
        raise UserError(
            f"--normalisation {text}: auto, imagenet, cifar, or mean and standard deviation: 0.5,0.5,0.5/0.2,0.2,0.2"
        )
    return mean, std


def written(normalisation: Normalisation) -> str:
    """The text of which `normalisation_of` gives this."""
    names = [name for name, known in NORMALISATIONS.items() if known == normalisation]
    return names[0] if names else "/".join(",".join(map(str, half)) for half in normalisation)


def normalisation_of_start(init: str) -> Normalisation:
    """That of the images that given weights were trained on; ImageNet's of random ones, or where it is not known.

    Raises UserError if there are no such weights.
    """
    if init == "random":
        return IMAGENET
    if (file := Path(init) / "config.yaml").is_file():
        values = read_values(file)
        views, model = values.get("views", {}), values.get("model", {})
        if "views" in views:  # of pre-training
            return get_pretext(views["views"])[0].normalisation
        return normalisation_of(views.get("normalisation", model.get("normalisation", "auto")))  # of transfer
    if init.startswith("torchvision:"):
        return IMAGENET
    if init.startswith("timm:"):
        return timm_normalisation(init) or IMAGENET
    return normalisation_of_weights(read_weights(init))


def normalisation_of_weights(weights: Weights) -> Normalisation:
    """That of the images that they were trained on; ImageNet's where they do not name it."""
    return weights.mean or IMAGENET[0], weights.std or IMAGENET[1]
