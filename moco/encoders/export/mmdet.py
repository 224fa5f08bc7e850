"""MMDetection's form: a ResNet's state dict, and a config file. After its documentation; not run here."""

import pprint
from pathlib import Path
from typing import Any

from torch import nn

from moco.encoders.description import Description
from moco.encoders.export.detectron2 import in_255
from moco.encoders.export.exported import Exported, refuse, torch_file
from moco.encoders.export.resnets import Shape, shape_of
from moco.encoders.files import copied

HEADER = """\
# What the weights in {name} need, for MMDetection 3: inherit it beside a detector's config,
#   _base_ = ["mask-rcnn_r50_fpn_1x_coco.py", {config!r}]
# Written after MMDetection's documentation of MoCo backbones (configs/selfsup_pretrain); not tried with MMDetection.
"""


def to_mmdet(encoder: nn.Module, description: Description, path: Path) -> Exported:
    """`PATH.pth` for `init_cfg`, in mmdet's names, which are torchvision's, and `PATH.py` beside it.

    Raises:
        UserError: the encoder is no ResNet that mmdet has.
    """
    model, config = config_of(encoder, description, path), path.with_suffix(".py")
    text = HEADER.format(name=path.name, config=str(config))
    text += f"model = {pprint.pformat(model, sort_dicts=False, width=110)}\n"
    usage = f"untested here, as MMDetection writes it: inherit {config} beside a detector's config (_base_)"
    return Exported({path: torch_file({"state_dict": copied(encoder.state_dict())}), config: text.encode()}, usage)


def config_of(encoder: nn.Module, description: Description, path: Path) -> dict[str, Any]:
    """The `model` of the config file. Raises UserError, as `to_mmdet`."""
    backbone = _backbone(shape_of(encoder, description, "mmdet"), description) | {
        "frozen_stages": 0,
        "norm_cfg": {"type": "SyncBN", "requires_grad": True},
        "norm_eval": False,
        "init_cfg": {"type": "Pretrained", "checkpoint": str(path.absolute())},
    }
    colours = {"mean": in_255(description.mean), "std": in_255(description.std), "bgr_to_rgb": True}
    return {"data_preprocessor": colours, "backbone": backbone}


def _backbone(shape: Shape, description: Description) -> dict[str, Any]:
    """mmdet's arguments for a ResNet of this shape."""
    values: dict[str, Any] = {"type": "ResNet", "depth": shape.depth, "style": "pytorch"}
    if shape.planes != 64:
        values["base_channels"] = shape.planes
    if shape.groups > 1:
        values |= {"type": "ResNeXt", "groups": shape.groups}
        values["base_width"] = shape.width // shape.groups  # channels of a group where the stage has base_channels
    elif shape.width != shape.planes:
        raise refuse("mmdet", description, "its ResNets widen all convolutions or none")
    if shape.stem != shape.planes:
        values["stem_channels"] = shape.stem
    return values
