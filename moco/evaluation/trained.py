"""A trained encoder, from a run's folder or a file of weights."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from moco.encoders import build_encoder, load_encoder, read_arch
from moco.runs.checkpoint import newest_checkpoint
from moco.runs.config import Config, Encoder, Views
from moco.runs.folder import Run
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.views import CentreCrop


@dataclass
class Trained:
    """An encoder and how it sees images."""

    encoder: nn.Module
    config: Config
    folder: Path
    """Where what is measured is written."""
    weights: Path
    """The file that the weights come from."""

    def on(self, device: Device) -> tuple[nn.Module, CentreCrop]:
        """The encoder on the device, and how it sees images there."""
        views = self.config.views
        encoder = self.encoder.to(device.device, memory_format=device.memory_format)  # type: ignore[call-overload]
        return encoder, CentreCrop(views.views, views.image_size, device.channels_last)


def open_trained(path: Path, encoder: str | None = None, image_size: int | None = None) -> Trained:
    """The encoder of a run (its newest whole checkpoint), or of a file of weights.

    Args:
        path: a run's folder, or a file that `load_encoder` reads, such as a released checkpoint.
        encoder: its name, where a file does not tell it.
        image_size: side of a view in pixels, where it is another than the run's (224 for a file).

    Raises:
        UserError: no such run or file, or weights that do not fit.
    """
    if path.is_file():
        name = encoder or read_arch(path)
        if name is None:
            raise UserError(f"{path}: does not name its encoder: give --encoder")
        config = Config(encoder=Encoder(name), views=Views("v2", image_size or 224))
        weights, folder = path, path.parent
    else:
        run = Run.open(path)
        config = run.config()
        newest = newest_checkpoint(run)
        if newest is None:
            raise UserError(f"{path}: the run has no checkpoint yet")
        weights, folder = newest, path
        config = replace(
            config,
            views=replace(config.views, image_size=image_size or config.views.image_size),
            encoder=replace(config.encoder, encoder=encoder or config.encoder.encoder),
        )
    module = build_encoder(config.encoder.encoder, config.encoder.small_stem)
    load_encoder(module, weights)
    return Trained(module, config, folder, weights)
