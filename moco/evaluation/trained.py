"""A trained encoder, from a run's folder or a file of weights."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from moco.encoders import Description, Normalisation, build_encoder, fill
from moco.encoders.published import attention_heads
from moco.runs.config import Config, Encoder, Views
from moco.runs.folder import Run
from moco.runs.weights import read_weights
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.views import CentreCrop, get_pretext
from moco.views.recipes import CIFAR, IMAGENET

log = logging.getLogger("moco")


@dataclass
class Trained:
    """An encoder and how it sees images."""

    encoder: nn.Module
    config: Config
    folder: Path
    """Where what is measured is written."""
    weights: Path
    """The file that the weights come from, or the library's name of them."""
    normalisation: Normalisation = IMAGENET
    """Of the images that it was trained on."""

    @property
    def description(self) -> Description:
        """What `moco export` writes beside the weights."""
        options, (mean, std) = self.config.encoder, self.normalisation
        size, heads = self.config.views.image_size, attention_heads(self.encoder)
        return Description(options.encoder, options.small_stem, size, mean, std, heads)

    def on(self, device: Device) -> tuple[nn.Module, CentreCrop]:
        """The encoder on the device, and how it sees images there: by the normalisation of its training."""
        views = self.config.views
        pretext = replace(get_pretext(views.views)[0], normalisation=self.normalisation)  # type: ignore[arg-type]
        encoder = self.encoder.to(device.device, memory_format=device.memory_format)  # type: ignore[call-overload]
        return encoder, CentreCrop(pretext, views.image_size, device.channels_last)


def open_trained(path: Path, encoder: str | None = None, image_size: int | None = None) -> Trained:
    """The encoder of a run (its newest whole checkpoint), or one with given weights.

    Args:
        path: a run's folder, or whatever else `load_weights` takes: a released checkpoint, `torchvision:resnet50`,
            `shapes-cpu`.
        encoder: its name, where the weights do not give it.
        image_size: side of a view in pixels, where it is another than the run's (for given weights: than theirs if they
            give it, else 224).

    Raises:
        UserError: no such run or weights, or they do not fit.
    """
    if not (is_run := Run(path).exists) and str(path) == "random":
        raise UserError("random: no weights to evaluate: give a run's folder or weights (moco knn RUN --random)")
    weights = read_weights(str(path))
    if is_run:
        config, source, folder = Run(path).config(), Path(weights.source), path
        config = replace(
            config,
            views=replace(config.views, image_size=image_size or config.views.image_size),
            encoder=replace(config.encoder, encoder=encoder or config.encoder.encoder),
        )
    else:
        name = encoder or weights.encoder
        if name is None:
            raise UserError(f"{path}: does not name its encoder: give --encoder")
        views = "cifar" if (weights.mean, weights.std) == CIFAR else "v2"  # which differ in the normalisation
        size = image_size or weights.image_size or 224
        config = Config(encoder=Encoder(name, weights.small_stem), views=Views(views, size))
        source, folder = path, path.parent if path.exists() else Path()
    module = build_encoder(config.encoder.encoder, config.encoder.small_stem)
    seen = get_pretext(config.views.views)[0].normalisation
    normalisation = (weights.mean or seen[0], weights.std or seen[1])
    loaded = fill(module, weights, normalisation)
    if not is_run:
        log.info("%s", loaded)
    return Trained(module, config, folder, source, normalisation)
