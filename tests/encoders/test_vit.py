"""ViTs as MoCo v3 takes them: the patch projection frozen, positions of sines and cosines."""

import math

import pytest
import torch

from moco.encoders import build_encoder, patch_projection
from moco.encoders.vit import sine_cosine
from moco.runs.config import Config, Contrast, Encoder
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.training.build import build_mechanism

TIMM = ["timm:vit_small_patch16_224", "timm:deit_tiny_distilled_patch16_224"]


def test_vit_small_is_that_of_moco_v3():
    with torch.device("meta"):
        encoder = build_encoder("vit_s_16")
    assert encoder.num_features == 384
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == 21.7  # its Table 2 says 22
    assert encoder.encoder.layers[0].self_attention.num_heads == 12
    assert encoder(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 384)


@pytest.mark.parametrize("name", ["vit_s_16", *TIMM])
def test_frozen_patches_get_no_gradient_and_all_else_does(name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    encoder = build_encoder(name, freeze_patches=True)
    plain = build_encoder(name)
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    frozen = {key for key, p in encoder.named_parameters() if not p.requires_grad}
    projection, positions = (
        ("conv_proj", "encoder.pos_embedding") if name == "vit_s_16" else ("patch_embed.proj", "pos_embed")
    )
    assert frozen == {f"{projection}.weight", f"{projection}.bias", positions}
    assert patch_projection(encoder).weight.std() > 0
    encoder(torch.randn(1, 3, 224, 224)).square().sum().backward()
    assert all((p.grad is None) == (key in frozen) for key, p in encoder.named_parameters())


@pytest.mark.parametrize("name", ["vit_s_16", *TIMM])
def test_positions_are_waves_and_the_class_token_has_none(name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    encoder = build_encoder(name, freeze_patches=True)
    (positions,) = encoder.encoder.pos_embedding if name == "vit_s_16" else encoder.pos_embed
    others, dim = len(positions) - 196, positions.shape[1]
    assert torch.equal(positions[:others], torch.zeros(others, dim))
    for row, column in ((0, 0), (3, 11), (13, 5)):
        token = positions[others + 14 * row + column]
        for i in (0, 1, dim // 4 - 1):
            w = 1 / 10000 ** (i / (dim // 4))
            waves = [math.sin(w * column), math.cos(w * column), math.sin(w * row), math.cos(w * row)]
            assert token[i :: dim // 4].tolist() == pytest.approx(waves, abs=1e-5)


def test_a_grid_need_not_be_square():
    waves = sine_cosine(2, 3, 4)
    assert waves.shape == (6, 4)
    assert waves[4].tolist() == pytest.approx([math.sin(1), math.cos(1), math.sin(1), math.cos(1)])


def test_relative_positions_are_left_alone():
    pytest.importorskip("timm")
    encoder = build_encoder("timm:swin_tiny_patch4_window7_224", freeze_patches=True)
    assert {key for key, p in encoder.named_parameters() if not p.requires_grad} == {
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }


@pytest.mark.parametrize("name", ["resnet18", "tiny", "swin_t", "timm:xcit_nano_12_p16_224"])
def test_an_encoder_without_patches_is_refused(name):
    """Of the last, the projection is four convolutions with BN."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=f"^--freeze-patches: {name} is not a ViT and has no patch projection"):
        build_encoder(name, freeze_patches=True)


def test_positions_of_another_kind_are_refused():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"^--freeze-patches: .* has a position embedding of shape"):
        build_encoder("timm:hiera_tiny_224", freeze_patches=True)


@pytest.mark.parametrize(("name", "layers", "last_bn"), [("vit_s_16", 3, True), ("tiny", 2, False)])
def test_a_vits_heads_are_not_a_resnets(name, layers, last_bn):
    config = Config(encoder=Encoder(name), contrast=Contrast(dim=8, mechanism="moco-v3", hidden=16))
    mechanism = build_mechanism(config, 100, 50, choose_device(name="cpu"))
    assert sum(isinstance(layer, torch.nn.Linear) for layer in mechanism.query.head) == layers
    assert isinstance(mechanism.predictor[-1], torch.nn.modules.batchnorm._BatchNorm) == last_bn
    assert mechanism.total_steps == 50
