"""What a transfer run starts from: an encoder with given weights."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from moco.encoders import Normalisation, build_encoder
from moco.encoders.published import torchvision_name
from moco.runs.config import Encoder
from moco.runs.folder import Run, read_values
from moco.runs.weights import load_weights, read_weights
from moco.runtime.ranks import on_main
from moco.views.recipes import IMAGENET

log = logging.getLogger("moco")


def encoder_of(init: str, recipe: Encoder) -> Encoder:
    """The encoder that given weights are of; that of the recipe where they do not name theirs.

    A ResNet of timm's is built as torchvision's, whose stages a detector needs.

    Raises UserError if there are no such weights.
    """
    encoder = _named(init, recipe)
    return replace(encoder, encoder=torchvision_name(encoder.encoder))


def _named(init: str, recipe: Encoder) -> Encoder:
    if init == "random":
        return replace(recipe, init=init)
    if (folder := Path(init) / "config.yaml").is_file():
        values = read_values(folder)
        if "task" not in values:
            own = Run(Path(init)).config().encoder
            return replace(own, init=init)
        group = values.get("encoder", {})
        stem, patches = (bool(group.get(name, False)) for name in ("small_stem", "freeze_patches"))
        return Encoder(str(group.get("encoder", recipe.encoder)), stem, patches, init)
    weights = read_weights(init)
    return Encoder(weights.encoder, weights.small_stem, init=init) if weights.encoder else replace(recipe, init=init)


def normalise_by(network: nn.Module, normalisation: Normalisation) -> None:
    """Sets by which mean and standard deviation, of values in 0..1, a detector or FCN normalises its images."""
    for name, values in zip(("mean", "std"), normalisation, strict=True):
        getattr(network, name).copy_(torch.tensor([255 * value for value in values]).view(3, 1, 1))


def build_started(
    encoder: Encoder, seed: int, trained: bool = False, normalisation: Normalisation = IMAGENET
) -> nn.Module:
    """The encoder on the CPU, filled with its weights by the main rank; new layers draw from the seed after it.

    Args:
        trained: a checkpoint fills the whole network next: nothing is loaded here.
        normalisation: of the images that it will see, as of `load_weights`.

    Raises UserError, on all ranks, if there are no such weights, or if one of the encoder's tensors is not among them.
    """
    torch.manual_seed(seed)
    built = build_encoder(encoder.encoder, encoder.small_stem, encoder.freeze_patches)
    if trained:
        return built
    if encoder.init == "random":
        log.info("starting from random weights")
    else:
        log.info("starting from %s", on_main(lambda: str(load_weights(encoder.init, built, normalisation))))
    torch.manual_seed(seed)
    return built
