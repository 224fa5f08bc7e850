"""ONNX: onnxruntime gives the same features of any number of images, and of other sizes where the encoder does."""

import json
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from moco.encoders import Description
from moco.encoders.export import to_onnx
from moco.runtime.errors import UserError
from tests.encoders.export.models import trained

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(graph: bytes, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


@pytest.mark.slow
@torch.no_grad()
def test_any_number_of_images_of_any_size(tmp_path):
    encoder, description = trained("tiny"), Description("tiny", image_size=32)
    path = tmp_path / "out.onnx"
    graph = to_onnx(encoder, description, path).files[path]
    for shape in ((1, 3, 32, 32), (5, 3, 32, 32), (2, 3, 40, 71)):
        images = torch.randn(shape)
        expected = encoder(images)
        torch.testing.assert_close(run(graph, images), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["moco"])["mean"] == list(description.mean)


@pytest.mark.slow
@torch.no_grad()
def test_a_vit_takes_its_own_size_alone(tmp_path):
    torch.manual_seed(0)
    encoder = VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16).eval()
    path = tmp_path / "out.onnx"
    exported = to_onnx(encoder, Description("vit_b_16", image_size=32), path)
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(run(exported.files[path], images), encoder(images), rtol=0, atol=1e-4)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        run(exported.files[path], torch.randn(1, 3, 64, 64))


@torch.library.custom_op("moco_test::unheard_of", mutates_args=())
def unheard_of(images: Tensor) -> Tensor:
    return images.clone()


@unheard_of.register_fake
def _(images: Tensor) -> Tensor:
    return torch.empty_like(images)


class Unheard(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return unheard_of(images).mean(dim=(2, 3))


def test_a_missing_operator_is_named_in_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        to_onnx(Unheard().eval(), Description("mine", image_size=32), tmp_path / "out.onnx")
    line = "--to onnx: mine: ONNX has no operator for moco_test.unheard_of: --to safetensors keeps it in PyTorch"
    assert str(caught.value) == line


def test_what_is_too_large_for_a_file_is_refused_before_it_is_traced(tmp_path):
    large = nn.Linear(30_000, 30_000, bias=False, device="meta")
    with pytest.raises(UserError, match=r"mine: weights of 3\.4 GiB, and an ONNX file holds 2 GiB: --to safetensors"):
        to_onnx(large, Description("mine", image_size=32), tmp_path / "out.onnx")


@pytest.mark.parametrize("module", ["onnxruntime", "onnxscript"])
def test_it_is_an_extra(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"--to onnx needs {module}: pip install 'momentum-contrast\[onnx\]'"):
        to_onnx(trained("tiny"), Description("tiny"), tmp_path / "out.onnx")
