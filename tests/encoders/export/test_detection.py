"""Detectron2's file has the names that its loader matched, and the config beside it what the weights need; mmdet's."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from moco.encoders import Description, build_encoder
from moco.encoders.export import detectron2, mmdet, to_detectron2, to_mmdet
from moco.runtime.errors import UserError
from moco.views.recipes import CIFAR
from tests.encoders.export.models import assert_same_features, trained, write
from tests.transfer.detection.reference_numbers import text


def converted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the released code converts a checkpoint."""
    renamed = {}
    for key, value in state.items():
        name = key if "layer" in key else f"stem.{key}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for number in (1, 2, 3):
            name = name.replace(f"bn{number}", f"conv{number}.norm")
        renamed[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return renamed


def test_detectron2_finds_every_tensor(tmp_path):
    encoder, path = trained("resnet50"), tmp_path / "out.pth"
    write(to_detectron2(encoder, Description("resnet50"), path))
    content = torch.load(path, weights_only=True)
    assert content["matching_heuristics"] is True
    expected = converted(encoder.state_dict())
    assert content["model"].keys() == expected.keys()
    assert all(torch.equal(content["model"][key], value) for key, value in expected.items())
    for structure in ("c4_box", "fpn_mask"):
        matched = {name for name in text("checkpoint")[structure].values() if name}
        assert matched <= set(content["model"])
        assert {key for key in set(content["model"]) - matched if not key.endswith("num_batches_tracked")} == set()


def settings(name: str, tmp_path, **described) -> dict:
    path = tmp_path / "out.pth"
    exported = to_detectron2(trained(name), Description(name, **described), path)
    return yaml.safe_load(exported.files[tmp_path / "out.yaml"])


def test_the_config_carries_colours_and_stride(tmp_path):
    values = settings("resnet18", tmp_path)
    assert values["INPUT"]["FORMAT"] == "RGB"
    assert values["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert values["MODEL"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert values["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False
    assert values["MODEL"]["WEIGHTS"] == str(tmp_path / "out.pth")
    cifar = settings("resnet18", tmp_path, mean=CIFAR[0], std=CIFAR[1])
    assert cifar["MODEL"]["PIXEL_MEAN"] == pytest.approx([255 * value for value in CIFAR[0]])


SHAPES = {
    "resnet18": (18, 64, 64, 1, 64),
    "resnext50_32x8d": (50, 64, 256, 32, 8),
    "wide_resnet50_2": (50, 64, 256, 1, 128),
    "resnet50w2": (50, 128, 512, 1, 128),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_config_carries_the_shape(name):
    resnet = detectron2.config_of(without_values(name), Description(name), Path("out.pth"))["MODEL"]["RESNETS"]
    keys = ("DEPTH", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "NUM_GROUPS", "WIDTH_PER_GROUP")
    assert tuple(resnet[key] for key in keys) == SHAPES[name]


def without_values(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_encoder(name)


def test_mmdet_has_torchvision_s_names(tmp_path):
    encoder, path = trained("resnet18"), tmp_path / "out.pth"
    write(to_mmdet(encoder, Description("resnet18"), path))
    names: dict = {}
    exec((tmp_path / "out.py").read_text(), names)
    model, state = names["model"], torch.load(path, weights_only=True)["state_dict"]
    fresh = trained("resnet18")
    nn.init.zeros_(fresh.conv1.weight)
    fresh.load_state_dict(state)
    assert_same_features(encoder, fresh, 32)
    assert model["backbone"]["depth"] == 18
    assert model["backbone"]["style"] == "pytorch"  # the stride is in the 3x3 convolution
    assert model["backbone"]["init_cfg"] == {"type": "Pretrained", "checkpoint": str(tmp_path / "out.pth")}
    assert model["data_preprocessor"]["bgr_to_rgb"] is True
    assert model["data_preprocessor"]["mean"] == [123.675, 116.28, 103.53]
    assert "not tried" in (tmp_path / "out.py").read_text()


def test_mmdet_s_other_resnets():
    def backbone(name: str) -> dict:
        return mmdet.config_of(without_values(name), Description(name), Path("out.pth"))["backbone"]

    assert [backbone("resnext50_32x8d")[key] for key in ("type", "groups", "base_width")] == ["ResNeXt", 32, 8]
    assert backbone("resnet50w2")["base_channels"] == 128
    assert "base_channels" not in backbone("resnet50")
    with pytest.raises(UserError, match="--to mmdet: wide_resnet50_2: its ResNets widen all convolutions or none"):
        backbone("wide_resnet50_2")


@pytest.mark.parametrize("export", [to_detectron2, to_mmdet])
def test_what_detectors_cannot_have_is_refused(tmp_path, export):
    with pytest.raises(UserError, match="tiny: is no ResNet"):
        export(trained("tiny"), Description("tiny"), tmp_path / "out.pth")
    with pytest.raises(UserError, match="resnet18 with the small stem: its ResNets have no such stem"):
        export(trained("resnet18", True), Description("resnet18", True), tmp_path / "out.pth")
