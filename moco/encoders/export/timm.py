"""timm's form: a state dict for its model without the classifier."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from moco.encoders.build import TORCHVISION, require_timm
from moco.encoders.description import Description
from moco.encoders.export.exported import Exported, compare, probe, refuse, small_stem_lines
from moco.encoders.files import as_safetensors
from moco.encoders.names import from_timm_vit
from moco.encoders.published import RESNETS

NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnext50_32x8d": ("resnext50_32x4d", {"base_width": 8}),
    "vit_s_16": ("vit_small_patch16_224", {"num_heads": 12}),  # MoCo v3's has 12, timm's 6
    "vit_b_16": ("vit_base_patch16_224", {}),
    "vit_b_32": ("vit_base_patch32_224", {}),
    "vit_l_16": ("vit_large_patch16_224", {}),
    "vit_l_32": ("vit_large_patch32_224", {}),
    "vit_h_14": ("vit_huge_patch14_224", {}),
}
"""What timm calls the encoders that it calls otherwise, and with which arguments it builds them."""


class Translated(NamedTuple):
    """An encoder as timm has it."""

    architecture: str
    arguments: dict[str, Any]
    """Of `timm.create_model`, beside the name."""
    model: nn.Module
    """timm's, in evaluation mode, with our weights; of an encoder with the small stem, that stem is put in."""
    tensors: dict[str, Tensor]
    difference: float
    """As `compare` gives it."""


def to_timm(encoder: nn.Module, description: Description, path: Path) -> Exported:
    """A safetensors file for `timm.create_model(NAME, num_classes=0)`.

    Raises:
        UserError: timm is not installed, or has no such encoder.
    """
    timm = translate(encoder, description)
    spelled = "".join(f", {key}={value!r}" for key, value in timm.arguments.items())
    usage = [
        *(["import torch"] if description.small_stem else []),
        "import timm",
        "from safetensors.torch import load_file",
        "",
        f"model = timm.create_model({timm.architecture!r}, num_classes=0{spelled})",
        *(small_stem_lines(encoder) if description.small_stem else []),
        f"model.load_state_dict(load_file({str(path)!r}))",
    ]
    return Exported({path: as_safetensors(timm.tensors, description)}, "\n".join(usage), timm.difference)


def translate(encoder: nn.Module, description: Description, library: str = "timm") -> Translated:
    """timm's model with the encoder's weights, compared with it.

    Raises:
        UserError: timm is not installed, or has no such encoder.
    """
    if (name := timm_name(description)) is None:
        raise refuse(library, description, "timm has no such encoder")
    timm, (architecture, arguments) = require_timm(f"--to {library}"), name
    model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments).eval()
    if description.small_stem:
        model.conv1, model.maxpool = copy.deepcopy(encoder.get_submodule("conv1")), nn.Identity()
    ours, theirs = encoder.state_dict(), model.state_dict()
    same = set(ours) == set(theirs)
    tensors = {name: ours[name if same else from_timm_vit(name)] for name in theirs}
    model.load_state_dict(tensors)
    difference = compare(encoder, model, probe(description), library)
    return Translated(architecture, arguments, model, tensors, difference)


def timm_name(description: Description) -> tuple[str, dict[str, Any]] | None:
    """timm's name of the encoder and the arguments that it needs, whatever its stem; None if it has none."""
    name = description.encoder
    if name.startswith("timm:"):
        return name.removeprefix("timm:"), {}
    if name in TORCHVISION and name.startswith(RESNETS):
        return name, {}
    return NAMES.get(name)
