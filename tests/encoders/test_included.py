"""The encoders that come along are found by their names, offline, and see more than pixels do."""

import pytest
import torch

import moco
from moco.data.sources.shapes import draw
from moco.encoders import build_encoder, included, read_file, save_encoder
from moco.encoders.included import FOLDER, INCLUDED
from moco.evaluation import Features, knn_predict
from moco.runs.recipes.recipes import RECIPES
from moco.runs.weights import read_weights
from moco.runtime.errors import UserError
from moco.transfer.classification.suggest import Seen, seen_by
from moco.transfer.start import encoder_of
from moco.views.recipes import CIFAR

HERE = [name for name in INCLUDED if (FOLDER / f"{name}.safetensors").exists()]
SHAPES = RECIPES["shapes-cpu"].config


@pytest.mark.parametrize("name", HERE)
def test_a_name_stands_wherever_weights_are_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = RECIPES[name].config.views.image_size
    encoder, preprocess = moco.load_encoder(name)
    assert not encoder.training
    assert (preprocess.size, preprocess.mean, preprocess.std) == (size, *CIFAR)
    filled = build_encoder("tiny")
    assert str(moco.load_weights(name, filled)).startswith(f"{name}: ")
    assert all(value.dtype == encoder.state_dict()[key].dtype for key, value in filled.state_dict().items())
    assert torch.equal(filled.state_dict()["stem.0.weight"], encoder.state_dict()["stem.0.weight"])
    assert encoder_of(name, SHAPES.encoder).encoder == "tiny"
    assert seen_by(name) == Seen(size, "cifar")


def test_it_sees_more_than_pixels_do():
    """kNN on drawn images that its data set does not hold."""
    encoder, preprocess = moco.load_encoder("shapes-cpu")
    drawn = draw(torch.arange(900), size=24, seed=5)
    with torch.no_grad():
        by_features = accuracy(encoder(preprocess(drawn.images)), drawn.labels)
    by_pixels = accuracy(drawn.images.flatten(1) / 255 - 0.5, drawn.labels)
    assert by_features > by_pixels + 0.05


def accuracy(values: torch.Tensor, labels: torch.Tensor) -> float:
    """The first 600 are the bank."""
    bank = Features(values[:600], labels[:600])
    predicted = knn_predict(bank, values[600:], 10, 20, 0.1, torch.device("cpu"))
    return (predicted == labels[600:]).double().mean().item()


def test_a_path_of_its_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shapes-cpu"
    folder.mkdir()
    with pytest.raises(UserError, match="shapes-cpu: no such run"):
        read_weights("shapes-cpu")
    save_encoder(build_encoder("tiny"), folder / "model.safetensors")  # as the hub has it
    assert read_weights("shapes-cpu").source == "hf:shapes-cpu"


def test_a_wheel_holds_the_first_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(included, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"cifar10-cpu: does not come with this installation: .*cifar10-cpu\.safe"):
        moco.load_encoder("cifar10-cpu")


def test_what_is_no_name_lists_them():
    with pytest.raises(UserError, match="shape-cpu: no such path: give a run's folder, a file, shapes-cpu, cifar10-cp"):
        read_weights("shape-cpu")


def test_half_precision_is_widened():
    """The file holds float16, the encoder is of float32."""
    assert read_file(FOLDER / "shapes-cpu.safetensors").tensors["stem.0.weight"].dtype == torch.float16
    assert {value.dtype for value in moco.load_encoder("shapes-cpu")[0].parameters()} == {torch.float32}
