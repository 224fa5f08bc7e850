"""What is evaluated: a run's folder, or a file of weights such as the released code's."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from moco.encoders import Description, build_encoder
from moco.encoders.files import as_safetensors
from moco.evaluation import load_encoder, open_trained
from moco.runs.checkpoint import save_checkpoint
from moco.runs.config import Config, Encoder
from moco.runs.folder import Run
from moco.runs.recipes.recipes import RECIPES
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.views.recipes import CIFAR, IMAGENET

CPU = choose_device("cpu", "fp32", channels_last=False)
CONFIG = RECIPES["shapes-cpu"].config


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def ours(encoder: nn.Module, step: int = 7) -> dict:
    query = {f"query.backbone.{key}": value for key, value in encoder.state_dict().items()}
    return {
        "step": step,
        "mechanism": query | {"query.head.weight": torch.randn(16, 128), "queue.keys": torch.randn(4)},
    }


def released(encoder: nn.Module, arch: str) -> dict:
    """As main_moco.py of the released code writes it."""
    state = {f"module.encoder_q.{key}": value for key, value in encoder.state_dict().items()}
    state |= {"module.encoder_q.fc.weight": torch.randn(128, 512), "module.encoder_q.fc.bias": torch.randn(128)}
    state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": arch, "state_dict": state, "optimizer": {}}


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", CONFIG)


def test_a_run_gives_the_encoder_of_its_newest_whole_checkpoint(run):
    encoder = build_encoder("tiny")
    whole = save_checkpoint(run, 1, ours(encoder), 3)
    save_checkpoint(run, 2, ours(build_encoder("tiny")), 3).write_bytes(b"cut")
    trained = open_trained(run.path)
    assert_equal(trained.encoder, encoder)
    assert trained.config == CONFIG
    assert (trained.folder, trained.weights) == (run.path, whole)


def test_a_run_may_be_evaluated_at_another_size(run):
    save_checkpoint(run, 1, ours(build_encoder("tiny")), 3)
    assert open_trained(run.path, image_size=48).config.views.image_size == 48


def test_a_run_of_another_architecture_names_the_keys(run):
    save_checkpoint(run, 1, ours(build_encoder("tiny")), 3)
    with pytest.raises(UserError, match=r"does not fit the encoder: missing: conv1\.weight") as caught:
        open_trained(run.path, encoder="resnet18")
    assert "\n" not in str(caught.value)


def test_a_run_without_a_checkpoint(run, tmp_path):
    with pytest.raises(UserError, match="has no checkpoint yet"):
        open_trained(run.path)
    with pytest.raises(UserError, match="no such path"):
        open_trained(tmp_path / "none")


def test_a_released_checkpoint_names_its_encoder(tmp_path):
    encoder = build_encoder("resnet18")
    torch.save(released(encoder, "resnet18"), tmp_path / "moco_v2_200ep.pth.tar")
    trained = open_trained(tmp_path / "moco_v2_200ep.pth.tar")
    assert_equal(trained.encoder, encoder)
    assert trained.config == replace(Config(), encoder=Encoder("resnet18"))
    assert trained.config.views.image_size == 224
    assert trained.folder == tmp_path


def test_a_released_checkpoint_of_another_architecture(tmp_path):
    torch.save(released(build_encoder("resnet18"), "resnet50"), tmp_path / "wrong.pth.tar")
    with pytest.raises(UserError, match=r"does not fit the encoder: missing: .*layer1\.0\.conv3\.weight"):
        open_trained(tmp_path / "wrong.pth.tar")


def test_commands_normalise_by_the_weights_own_numbers(tmp_path, caplog):
    """As timm's of mean 0.5: neither ImageNet's nor CIFAR's; and as `load_encoder` does."""
    half, path = (0.5, 0.5, 0.5), tmp_path / "half.safetensors"
    described = Description("tiny", image_size=16, mean=half, std=half)
    path.write_bytes(as_safetensors(build_encoder("tiny").state_dict(), described))
    trained = open_trained(path)
    _, centre = trained.on(CPU)
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    (views,) = centre(images, torch.arange(2), 0)
    assert torch.equal(views, load_encoder(path)[1](images))
    assert centre.pretexts[0].normalisation == trained.normalisation == (half, half)
    assert "normalised" not in caplog.text


def test_a_file_that_does_not_name_its_encoder(tmp_path):
    encoder = build_encoder("tiny")
    torch.save(encoder.state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(UserError, match="give --encoder"):
        open_trained(tmp_path / "tiny.pt")
    assert_equal(open_trained(tmp_path / "tiny.pt", "tiny", 32).encoder, encoder)


def test_weights_of_cifar_s_normalisation_have_cifar_s_views(tmp_path):
    for name, mean_and_std in (("cifar", CIFAR), ("v2", IMAGENET)):
        described = Description("tiny", False, 16, *mean_and_std)
        (tmp_path / name).with_suffix(".safetensors").write_bytes(
            as_safetensors(build_encoder("tiny").state_dict(), described)
        )
        assert open_trained((tmp_path / name).with_suffix(".safetensors")).config.views.views == name
