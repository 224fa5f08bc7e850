"""The exported file, loaded by the very lines that the command prints, gives the same features there."""

import sys

import pytest
import torch

from moco.encoders import Description, build_encoder
from moco.encoders.export import as_torchvision, to_timm, to_torchvision
from moco.encoders.export.exported import compare
from moco.runs.weights import load_weights
from moco.runtime.errors import UserError
from tests.encoders.export.models import assert_same_features, described, follow, trained, write

LARGE = ("resnet34", "resnet50", "resnext50_32x8d", "wide_resnet50_2", "vit_s_16")
BOTH = [
    ("resnet18", False),
    ("resnet18", True),
    *(pytest.param(name, False, marks=pytest.mark.slow) for name in LARGE),
]


@pytest.mark.parametrize("export", [to_torchvision, to_timm])
@pytest.mark.parametrize(("name", "small_stem"), BOTH)
def test_each_loads_there_with_nothing_missing_and_gives_the_same_features(tmp_path, export, name, small_stem):
    encoder, description, path = trained(name, small_stem), described(name, small_stem), tmp_path / "out.safetensors"
    exported = export(encoder, description, path)
    write(exported)
    assert_same_features(encoder, follow(exported)["model"], description.image_size)
    assert 0 <= exported.difference < 1e-5
    back = build_encoder(name, small_stem)
    load_weights(str(path), back)  # it is ours again
    assert all(torch.equal(back.state_dict()[key], value) for key, value in encoder.state_dict().items())


def test_other_models_of_torchvision(tmp_path):
    encoder = trained("mobilenet_v3_small")
    exported = to_torchvision(encoder, described("mobilenet_v3_small"), tmp_path / "out.safetensors")
    write(exported)
    assert_same_features(encoder, follow(exported)["model"], 32)


def test_a_resnet_of_timm_is_one_of_torchvision_too(tmp_path):
    encoder = trained("timm:resnet18")
    theirs, description = as_torchvision(encoder, described("timm:resnet18.a1_in1k"))
    assert description.encoder == "resnet18"
    assert_same_features(encoder, theirs, 32)
    exported = to_timm(encoder, described("timm:resnet18"), tmp_path / "out.safetensors")
    write(exported)
    assert_same_features(encoder, follow(exported)["model"], 32)


@pytest.mark.parametrize("export", [to_torchvision, to_timm])
@pytest.mark.parametrize("name", ["tiny", "resnet50w2"])
def test_what_a_library_cannot_express_is_refused(tmp_path, export, name):
    with pytest.raises(
        UserError, match=rf"^--to \w+: {name}: (torchvision cannot build it|timm has no such encoder): "
    ):
        export(torch.nn.Identity(), Description(name), tmp_path / "out.safetensors")


def test_timm_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^--to timm needs timm: pip install 'momentum-contrast\[timm\]'"):
        to_timm(torch.nn.Identity(), Description("resnet18"), tmp_path / "out.safetensors")


def test_other_features_are_refused():
    encoder = trained("tiny")
    with pytest.raises(UserError, match=r"--to timm: its features differ by 0\.1 of the largest"):
        compare(encoder, lambda images: 1.1 * encoder(images), (2, 3, 16, 16), "timm")
    with pytest.raises(UserError, match="differ by nan"):
        compare(encoder, lambda images: encoder(images) * float("nan"), (2, 3, 16, 16), "timm")
