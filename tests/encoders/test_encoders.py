"""Encoders by name: shapes, sizes, stems, refusals."""

import sys
import warnings

import pytest
import torch
import torchvision
from torch import nn

from moco.encoders import TinyResNet, build_encoder
from moco.encoders.resnet import wide_resnet50
from moco.runtime.errors import UserError


def on_meta(name: str, small_stem: bool = False) -> nn.Module:
    with torch.device("meta"):
        return build_encoder(name, small_stem)


def parameters(encoder: nn.Module) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "num_features", "millions"),
    [
        ("resnet18", 512, 11.2),
        ("resnet34", 512, 21.3),
        ("resnet50", 2048, 23.5),  # Table 1 says 24
        ("resnext50_32x8d", 2048, 46.0),  # 45,972,800 without its classifier: Table 1's 46
        ("resnet50w2", 4096, 93.9),  # 94
        ("resnet50w4", 8192, 375.4),  # 375
    ],
)
def test_resnets_have_the_sizes_of_table_1(name, num_features, millions):
    encoder = on_meta(name)
    assert round(parameters(encoder) / 1e6, 1) == millions
    assert encoder.num_features == num_features
    assert encoder(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, num_features)


def test_width_multiplies_every_channel_and_nothing_else():
    narrow, wide = on_meta("resnet50").state_dict(), on_meta("resnet50w2").state_dict()
    assert narrow.keys() == wide.keys()
    for key, value in narrow.items():
        expected = [2 * size if axis < 2 and size != 3 else size for axis, size in enumerate(value.shape)]
        assert list(wide[key].shape) == expected, key


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_a_fraction_makes_every_channel_fewer(name):
    narrow, whole = on_meta(f"{name}w0.25"), on_meta(name)
    assert narrow.num_features == whole.num_features // 4
    assert narrow.state_dict().keys() == whole.state_dict().keys()
    for key, value in narrow.state_dict().items():
        expected = [
            size if size == 3 or axis > 1 else size // 4 for axis, size in enumerate(whole.state_dict()[key].shape)
        ]
        assert list(value.shape) == expected, key


@pytest.mark.parametrize("name", ["tinyw0.125", "resnet18w0.1", "tinyw2"])
def test_none_is_narrower_than_8_channels_or_wider_than_all(name):
    with pytest.raises(UserError, match=f"unknown encoder '{name}'"):
        on_meta(name)


def test_every_convolution_of_a_resnet_starts_as_torchvisions_does():
    for encoder in (build_encoder("resnet18", small_stem=True), wide_resnet50(1)):
        for convolution in (encoder.conv1, encoder.layer1[0].conv2, encoder.layer4[1].conv2):
            out, _, height, width = convolution.weight.shape
            assert convolution.weight.std().item() == pytest.approx((2 / (out * height * width)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50w2", "resnext50_32x8d", "resnet101"])
def test_small_stem_keeps_the_resolution(name):
    encoder = on_meta(name, small_stem=True)
    assert encoder.conv1.kernel_size == (3, 3)
    assert encoder.conv1.bias is None
    images = torch.zeros(2, 3, 32, 32, device="meta")
    assert encoder.maxpool(encoder.conv1(images)).shape == (2, encoder.conv1.out_channels, 32, 32)
    assert encoder(images).shape == (2, encoder.num_features)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_16", "timm:resnet18"])
def test_small_stem_is_refused_where_there_is_none_to_exchange(name):
    with pytest.raises(UserError, match=f"--small-stem: {name} is not a ResNet"):
        on_meta(name, small_stem=True)


def test_tiny_learns_from_small_images():
    encoder = build_encoder("tiny")
    features = encoder(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, encoder.num_features)
    features.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


def test_tiny_has_the_small_stem_already():
    assert on_meta("tiny", small_stem=True).state_dict().keys() == on_meta("tiny").state_dict().keys()


def test_tiny_takes_any_image_size():
    assert TinyResNet()(torch.rand(2, 3, 17, 40)).shape == (2, 256)


@pytest.mark.parametrize(
    ("name", "num_features"),
    [
        ("alexnet", 4096),  # `classifier`, with linear layers before the last
        ("convnext_tiny", 768),
        ("densenet121", 1024),  # `classifier` itself
        ("efficientnet_b0", 1280),
        ("mobilenet_v3_small", 1024),
        ("shufflenet_v2_x1_0", 1024),  # `fc`
        ("swin_t", 768),  # `head`
        ("vit_b_16", 768),  # `heads.head`
        ("googlenet", 1024),  # in training it would give three outputs
    ],
)
def test_torchvisions_other_families(name, num_features):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = on_meta(name).train()
    assert encoder.num_features == num_features
    assert encoder(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, num_features)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "googlenet", "vgg11"])
def test_the_classifiers_dropout_goes_with_it(name):
    leaves = [module for module in on_meta(name).modules() if not list(module.children())]
    assert isinstance(leaves[-1], nn.Identity)
    assert not isinstance(leaves[-2], nn.Dropout)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "vit_tiny_patch16_224", "timm:mobilenetv3_small_050"])
def test_timms_models(name):
    pytest.importorskip("timm")
    encoder = on_meta(name)
    # mobilenetv3: timm's own `num_features` is 288, before the layer that widens the pooled features to 1024.
    assert encoder(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, encoder.num_features)


def test_torchvision_wins_over_timm_unless_timm_is_named():
    pytest.importorskip("timm")
    assert isinstance(on_meta("resnet18"), torchvision.models.ResNet)
    assert type(on_meta("timm:resnet18")).__module__.startswith("timm.")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet05", "resnet50"),
        ("tinny", "tiny"),
        ("ResNet18", "resnet18"),
        ("timm:vit_tny_patch16_224", "timm:vit_tiny_"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name, nearest):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=f"unknown encoder '{name}': did you mean {nearest}"):
        build_encoder(name)


def test_a_name_like_no_other_is_told_some():
    with pytest.raises(UserError, match="unknown encoder '': there are tiny, resnet18, "):
        build_encoder("")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'momentum-contrast\[timm\]'"):
        build_encoder("timm:vit_tiny_patch16_224")
    with pytest.raises(
        UserError, match=r"unknown encoder 'resnet05': did you mean resnet50\? .* 'momentum-contrast\[timm\]'"
    ):
        build_encoder("resnet05")
    assert build_encoder("tiny").num_features > 0


def test_a_family_without_a_linear_classifier_is_refused():
    with pytest.raises(UserError, match="--encoder squeezenet1_0: has no linear classifier"):
        on_meta("squeezenet1_0")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("training", [True, False])
def test_resnets_compute_what_torchvision_s_do(name, training):
    """Ours call BN, residual and ReLU together, for the GPU's kernels; the numbers are the same bits."""
    ours = build_encoder(name).train(training)
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    theirs.train(training)
    images, copied = (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    mine, expected = ours(images), theirs(copied)
    assert torch.equal(mine, expected)
    mine.square().sum().backward()
    expected.square().sum().backward()
    for (key, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key
