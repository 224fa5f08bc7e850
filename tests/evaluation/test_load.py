"""An encoder in one line: from whatever names one, with the preprocessing that the commands use."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

import moco
from moco.encoders import Description, build_encoder, save_encoder
from moco.encoders.files import as_safetensors
from moco.evaluation import Preprocess
from moco.runs.checkpoint import save_checkpoint
from moco.runs.folder import Run
from moco.runs.recipes.recipes import RECIPES
from moco.runtime.errors import UserError
from moco.views import CentreCrop
from moco.views.recipes import CIFAR, IMAGENET


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run.create(tmp_path / "run", RECIPES["shapes-cpu"].config)
    query = {f"query.backbone.{key}": value for key, value in build_encoder("tiny").state_dict().items()}
    save_checkpoint(run, 1, {"step": 1, "mechanism": query}, 3)
    return run


def test_a_run_is_ready_to_use(run):
    encoder, preprocess = moco.load_encoder(run.path)
    assert not encoder.training
    assert (preprocess.size, preprocess.mean) == (24, CIFAR[0])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert encoder(preprocess(image)[None]).shape == (1, encoder.num_features)


def test_it_sees_images_as_the_commands_do(run):
    preprocess = moco.load_encoder(str(run.path))[1]
    images = torch.randint(0, 256, (5, 3, 31, 40), dtype=torch.uint8)
    (expected,) = CentreCrop("shapes", 24)(images, torch.arange(5), 0)
    assert torch.equal(preprocess(images), expected)
    assert torch.equal(preprocess(images[2]), expected[2])
    grey = Image.fromarray(images[0, 0].numpy())
    assert torch.equal(preprocess(grey), preprocess(images[0, :1].expand(3, -1, -1).contiguous()))


def test_an_image_of_its_size_is_normalised_alone():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    expected = F.normalize(image / 255, *map(list, IMAGENET))
    torch.testing.assert_close(Preprocess(16, *IMAGENET)(image), expected)


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(UserError, match=r"an image is uint8 \(3, h, w\), or several are uint8 \(n, 3, h, w\), not "):
        Preprocess(16, *IMAGENET)(images)


def test_an_exported_file_describes_itself(tmp_path):
    encoder = build_encoder("resnet18", small_stem=True).eval()
    path = tmp_path / "mine.safetensors"
    path.write_bytes(as_safetensors(encoder.state_dict(), Description("resnet18", True, 48, *CIFAR)))
    loaded, preprocess = moco.load_encoder(path)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded(images), encoder(images))
    assert (preprocess.size, preprocess.mean, preprocess.std) == (48, *CIFAR)
    assert moco.load_encoder(path, image_size=64)[1].size == 64


def test_a_file_that_names_no_encoder(tmp_path):
    save_encoder(build_encoder("tiny"), tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="does not name its encoder"):
        moco.load_encoder(tmp_path / "plain.safetensors")
    assert moco.load_encoder(tmp_path / "plain.safetensors", encoder="tiny")[1].size == 224


def test_a_header_of_nonsense_is_not_believed(tmp_path):
    import safetensors.torch

    for text in ("{", "[1]", json.dumps({"encoder": 3, "mean": [1, 2]})):
        content = safetensors.torch.save({"a": torch.zeros(1)}, metadata={"moco": text})
        (tmp_path / "odd.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="does not name its encoder"):
            moco.load_encoder(tmp_path / "odd.safetensors")
