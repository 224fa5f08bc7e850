"""torchvision's form: a state dict for its model without the classifier."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn
from torchvision import models
from torchvision.models.resnet import ResNet

from moco.encoders.build import TORCHVISION, WITHOUT_AUXILIARY, build_encoder
from moco.encoders.description import Description
from moco.encoders.export.exported import Exported, compare, probe, refuse, small_stem_lines
from moco.encoders.files import as_safetensors
from moco.encoders.published import RESNETS
from moco.encoders.resnet import RESNET50_BLOCKS, resnext50_32x8d
from moco.encoders.vit import vit_s_16

NAMELESS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "resnext50_32x8d": (
        resnext50_32x8d,
        [
            "from torchvision.models.resnet import Bottleneck, ResNet",
            f"model = ResNet(Bottleneck, {RESNET50_BLOCKS}, groups=32, width_per_group=8)",
        ],
    ),
    "vit_s_16": (
        vit_s_16,
        [
            "model = torchvision.models.VisionTransformer(",
            "    image_size=224, patch_size=16, num_layers=12, num_heads=12, hidden_dim=384, mlp_dim=1536",
            ")",
        ],
    ),
}
"""Encoders that torchvision can build and has no name for, with the Python that does."""


def to_torchvision(encoder: nn.Module, description: Description, path: Path) -> Exported:
    """A safetensors file for torchvision's model of that name, whose classifier is replaced by nn.Identity.

    Raises:
        UserError: torchvision cannot build this encoder.
    """
    model, lines = _built(description)
    emptied = [name for name, module in encoder.named_modules() if isinstance(module, nn.Identity)]
    if description.small_stem and isinstance(encoder, ResNet):
        lines += small_stem_lines(encoder)
        model.conv1, model.maxpool = copy.deepcopy(encoder.conv1), nn.Identity()
        emptied.remove("maxpool")
    for name in emptied:
        if not isinstance(model.get_submodule(name), nn.Identity):
            model.set_submodule(name, nn.Identity())
            lines.append(f"model.set_submodule({name!r}, torch.nn.Identity())")
    model.load_state_dict(encoder.state_dict())
    difference = compare(encoder, model.eval(), probe(description), "torchvision")
    usage = [
        "import torch",
        "import torchvision",
        "from safetensors.torch import load_file",
        "",
        *lines,
        f"model.load_state_dict(load_file({str(path)!r}))",
    ]
    return Exported({path: as_safetensors(encoder.state_dict(), description)}, "\n".join(usage), difference)


def as_torchvision(encoder: nn.Module, description: Description) -> tuple[nn.Module, Description]:
    """A ResNet of timm that torchvision has too, as torchvision's; any other encoder as it is."""
    name = description.encoder.removeprefix("timm:").partition(".")[0]
    if name == description.encoder or name not in TORCHVISION or not name.startswith(RESNETS):
        return encoder, description
    theirs = build_encoder(name)
    theirs.load_state_dict(encoder.state_dict())
    return theirs.eval(), replace(description, encoder=name)


def _built(description: Description) -> tuple[nn.Module, list[str]]:
    """torchvision's model, and the Python that builds it."""
    name = description.encoder
    if name in NAMELESS:
        build, lines = NAMELESS[name]
        return build(), list(lines)
    if name not in TORCHVISION:
        raise refuse("torchvision", description, "torchvision cannot build it")
    arguments = WITHOUT_AUXILIARY.get(name, {})
    spelled = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return models.get_model(name, weights=None, **arguments), [
        f"model = torchvision.models.get_model({name!r}{spelled})"
    ]
