"""Detectron2's form: a ResNet under its names, and a config file with what these weights need."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from moco.encoders.description import Description
from moco.encoders.export.exported import Exported, torch_file
from moco.encoders.export.resnets import shape_of
from moco.encoders.files import copied

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns of how a name begins, and what takes its place."""
NAMES: Rules = [
    (r"conv1\.", "stem.conv1."),
    (r"bn1\.", "stem.conv1.norm."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}."),
    (r"layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
    (r"layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
]
"""torchvision's names and Detectron2's."""
HEADER = """\
# What the weights in {name} need: merge it into the config of a detector,
#   cfg.merge_from_file("{config}")
# It is fine-tuned as in section 4.2 of the paper: no stage is frozen, and BN is synchronised over the GPUs.
"""


def encoder_name(name: str) -> str:
    """A ResNet's tensor, from torchvision's name to Detectron2's: `layer1.0.conv1.weight` is `res2.0.conv1.weight`.

    Raises KeyError for what is no tensor of a ResNet.
    """
    return renamed(name, NAMES)


def renamed(name: str, rules: Rules) -> str:
    """By the first rule whose pattern begins the name. Raises KeyError if there is none."""
    for pattern, new in rules:
        changed, found = re.subn(f"^{pattern}", new, name)
        if found:
            return changed
    raise KeyError(name)


def to_detectron2(encoder: nn.Module, description: Description, path: Path) -> Exported:
    """`PATH.pth` for `MODEL.WEIGHTS`, as the released code's converter writes it, and `PATH.yaml` beside it.

    The config has the colour order, mean and standard deviation of the images in 0..255, the place of the stride
    (`STRIDE_IN_1X1: False`) and the shape of the ResNet. Detectron2 itself is not run here.

    Raises:
        UserError: the encoder is no ResNet that Detectron2 has.
    """
    settings = config_of(encoder, description, path)
    tensors = {encoder_name(name): value for name, value in copied(encoder.state_dict()).items()}
    config = path.with_suffix(".yaml")
    text = HEADER.format(name=path.name, config=config) + yaml.safe_dump(settings, sort_keys=False)
    content = {"model": tensors, "__author__": "moco", "matching_heuristics": True}
    usage = f"from detectron2.config import get_cfg\n\ncfg = get_cfg()\ncfg.merge_from_file({str(config)!r})"
    return Exported({path: torch_file(content), config: text.encode()}, usage)


def config_of(encoder: nn.Module, description: Description, path: Path) -> dict[str, Any]:
    """What the config file holds. Raises UserError, as `to_detectron2`."""
    shape = shape_of(encoder, description, "detectron2")
    resnet = {
        "DEPTH": shape.depth,
        "STRIDE_IN_1X1": False,
        "NORM": "SyncBN",
        "STEM_OUT_CHANNELS": shape.stem,
        "RES2_OUT_CHANNELS": shape.out,
        "NUM_GROUPS": shape.groups,
        "WIDTH_PER_GROUP": shape.width // shape.groups,
    }
    model = {
        "WEIGHTS": str(path.absolute()),
        "PIXEL_MEAN": in_255(description.mean),
        "PIXEL_STD": in_255(description.std),
        "BACKBONE": {"FREEZE_AT": 0},
        "RESNETS": resnet,
    }
    return {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}


def in_255(values: tuple[float, ...]) -> list[float]:
    """Mean or standard deviation of values in 0..1, of values in 0..255."""
    return [round(255 * value, 4) for value in values]
