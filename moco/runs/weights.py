"""Given weights to start from, or to evaluate: the one door for all that names them."""

from pathlib import Path

from torch import nn

from moco.encoders.description import Normalisation
from moco.encoders.files import Weights, read_file
from moco.encoders.included import INCLUDED, read_included
from moco.encoders.published import HUB_FILES, read_hub, read_timm, read_torchvision
from moco.encoders.weights import Loaded, fill
from moco.runs.checkpoint import require_checkpoint
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.views.recipes import IMAGENET

LIBRARIES = {"torchvision:": read_torchvision, "timm:": read_timm, "hf:": read_hub}


def load_weights(spec: str, encoder: nn.Module, normalisation: Normalisation = IMAGENET) -> Loaded:
    """Fills an encoder with given weights, all of it; one that they do not fit stays as it was.

    Args:
        spec: one of
            - `random`: the encoder stays as it is;
            - a run's folder: the query encoder of its newest whole checkpoint;
            - a file: a released checkpoint of MoCo v1 or v2 (`module.encoder_q.*`) or v3 (`module.base_encoder.*`,
              ResNet and ViT), or any state dict as `torch.save` or safetensors wrote it, with the prefixes of
              `names.PREFIXES`, under one of `files.WRAPPERS`; nothing in it is executed;
            - `shapes-cpu` or `cifar10-cpu`: weights that come along (moco/weights), unless a path has this name;
            - `torchvision:NAME`, `torchvision:NAME:WEIGHTS`, `timm:NAME`: what these have cached or can download;
            - `hf:OWNER/NAME`, `hf:FOLDER`: of the Hugging Face hub.
        encoder: of `build_encoder`, on any device.
        normalisation: of the RGB images that it will see; that they had another in training is remarked on.

    Raises:
        UserError: nothing of this name, weights that cannot be read or downloaded, or that do not fit, and why.
    """
    if spec == "random":
        return Loaded(spec, 0, 0)
    return fill(encoder, read_weights(spec), normalisation)


def read_weights(spec: str) -> Weights:
    """What `load_weights` fills an encoder with. `random` is none of these. Raises UserError, as it does."""
    for prefix, read in LIBRARIES.items():
        if spec.startswith(prefix):
            return read(spec)
    path = Path(spec)
    if spec in INCLUDED and not path.exists():
        return read_included(spec)
    if path.is_dir() and not Run(path).exists and any((path / file).is_file() for file in HUB_FILES):
        return read_hub(f"hf:{spec}")
    if path.is_dir():
        return read_file(require_checkpoint(Run.open(path)))
    if not path.exists():
        names = ", ".join([*INCLUDED, *(f"{prefix}NAME" for prefix in LIBRARIES)])
        raise UserError(f"{spec}: no such path: give a run's folder, a file, {names}")
    return read_file(path)
