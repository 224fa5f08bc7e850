"""A trained encoder, from a run's folder or a file of weights."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from moco.encoders import build_encoder, fill
from moco.runs.config import Config, Encoder, Views
from moco.runs.folder import Run
from moco.runs.weights import read_weights
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.views import CentreCrop

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

    def on(self, device: Device) -> tuple[nn.Module, CentreCrop]:
        """The encoder on the device, and how it sees images there."""
        views = self.config.views
        encoder = self.encoder.to(device.device, memory_format=device.memory_format)  # type: ignore[call-overload]
        return encoder, CentreCrop(views.views, views.image_size, device.channels_last)


def open_trained(path: Path, encoder: str | None = None, image_size: int | None = None) -> Trained:
    """The encoder of a run (its newest whole checkpoint), or one with given weights.

    Args:
        path: a run's folder, or whatever else `load_weights` takes: a released checkpoint, `torchvision:resnet50`.
        encoder: its name, where the weights do not give it.
        image_size: side of a view in pixels, where it is another than the run's (224 for given weights).

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
        config = Config(encoder=Encoder(name), views=Views("v2", image_size or 224))
        source, folder = path, path.parent if path.exists() else Path()
    module = build_encoder(config.encoder.encoder, config.encoder.small_stem)
    loaded = fill(module, weights)
    if not is_run:
        log.info("%s", loaded)
    return Trained(module, config, folder, source)
