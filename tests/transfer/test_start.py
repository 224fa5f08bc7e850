"""What a detector and an FCN start from: every kind of given weights fills the whole body, or is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights

from moco.encoders import build_encoder
from moco.encoders.published import torchvision_name
from moco.runs.config import Config, Encoder
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.transfer.config import LabelledData
from moco.transfer.detection.config import DetectionConfig, Model
from moco.transfer.detection.task import build as build_detector
from moco.transfer.segmentation.config import SegmentationConfig
from moco.transfer.segmentation.task import build as build_fcn
from moco.transfer.start import encoder_of

OTHER = Encoder("resnet50")
"""Of the recipe: where weights name their encoder, it is theirs."""


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(1)
    encoder = build_encoder("resnet18")
    for name, buffer in encoder.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.uniform_(0.5, 1.5)
    return encoder


def prefixed(prefix: str, state: dict) -> dict:
    return {f"{prefix}{key}": value for key, value in state.items()}


FILES = {
    "MoCo v1": lambda s: {"state_dict": prefixed("module.encoder_q.", s | {"fc.weight": torch.ones(128, 512)})},
    "MoCo v2": lambda s: {"state_dict": prefixed("module.encoder_q.", s | {"fc.0.weight": torch.ones(512, 512)})},
    "MoCo v3": lambda s: {"state_dict": prefixed("module.base_encoder.", s | {"fc.0.weight": torch.ones(4, 512)})},
    "a state dict": lambda s: s,
}


def detector_of(encoder: Encoder, structure: str) -> nn.Module:
    config = DetectionConfig(encoder=encoder, model=Model(structure, head_width=0.1), data=LabelledData("shapes"))
    return build_detector(config, 3, 0)


def assert_started(init: str, recipe: Encoder, source: nn.Module) -> None:
    """Each structure and the FCN have every tensor of the body."""
    encoder = encoder_of(init, recipe)
    assert encoder == Encoder("resnet18", init=init)
    wanted = {name: value for name, value in source.state_dict().items() if not name.startswith("fc.")}
    fcn = build_fcn(SegmentationConfig(encoder=encoder), 3)
    for network in [*(detector_of(encoder, structure) for structure in ("c4", "dc5", "fpn")), fcn]:
        state = network.state_dict()
        for name, value in wanted.items():
            own = [found for key, found in state.items() if key.endswith(f".{name}") and found.shape == value.shape]
            assert any(torch.equal(found, value) for found in own), name


@pytest.mark.parametrize("kind", FILES)
def test_released_checkpoints_and_files(tmp_path, source, kind):
    torch.save(FILES[kind](source.state_dict()), tmp_path / "weights.pth.tar")
    assert_started(str(tmp_path / "weights.pth.tar"), Encoder("resnet18"), source)


def test_a_model_of_torchvision(monkeypatch, source):
    state = source.state_dict() | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **_options: state)
    assert_started("torchvision:resnet18", OTHER, source)


def test_a_resnet_of_timm_has_torchvision_s_stages(monkeypatch, source):
    library = SimpleNamespace(create_model=lambda *_arguments, **_options: source, is_model=lambda _name: True)
    monkeypatch.setitem(sys.modules, "timm", library)
    assert_started("timm:resnet18.a1_in1k", OTHER, source)


def test_a_run_pre_trained_with_timm_s_resnet(tmp_path):
    Run.create(tmp_path / "run", Config(encoder=Encoder("timm:resnet18")))
    assert encoder_of(str(tmp_path / "run"), OTHER) == Encoder("resnet18", init=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnext50_32x4d.a1_in1k", "resnext50_32x4d"),
        ("timm:wide_resnet50_2", "wide_resnet50_2"),
        ("timm:resnet50d", "timm:resnet50d"),
        ("timm:vit_small_patch16_224", "timm:vit_small_patch16_224"),
        ("timm:convnext_tiny", "timm:convnext_tiny"),
        ("resnet50", "resnet50"),
        ("tiny", "tiny"),
    ],
)
def test_names_of_timm_that_torchvision_has(name, expected):
    assert torchvision_name(name) == expected


def test_a_tensor_of_the_body_that_is_missing_is_an_error(tmp_path, source):
    state = source.state_dict()
    del state["layer3.1.bn2.running_var"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth does not fit the encoder: missing: layer3\.1\.bn2\.running_var"):
        detector_of(encoder_of(str(tmp_path / "weights.pth"), Encoder("resnet18")), "c4")


def test_an_encoder_without_stages_is_an_error():
    with pytest.raises(UserError, match="needs a ResNet's stages, and TinyResNet has none: take resnet50"):
        detector_of(Encoder("tiny"), "c4")
