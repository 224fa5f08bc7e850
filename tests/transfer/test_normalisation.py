"""By which mean and standard deviation the images of a transfer run are normalised."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moco
from moco.cli.main import main
from moco.encoders import build_encoder
from moco.encoders.description import Description
from moco.encoders.files import as_safetensors
from moco.runs.config import Config, Views
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.transfer.classification.config import ClassificationConfig, TrainingViews
from moco.transfer.config import as_before
from moco.transfer.detection.config import DetectionConfig, Model
from moco.transfer.detection.detector import MEAN, STD
from moco.transfer.detection.task import build
from moco.transfer.normalisation import normalisation_of, normalisation_of_start, written
from moco.transfer.run import DetectionRun, FinetuneRun, SegmentationRun
from moco.transfer.segmentation.config import SegmentationConfig
from moco.transfer.segmentation.task import build as build_fcn
from moco.views.recipes import CIFAR, IMAGENET

HALF = (0.5, 0.25, 0.125), (0.25, 0.5, 0.3)
ENCODER = "resnet18w0.125"
COMPUTE = "--workers 0 --device cpu --precision fp32"
TINY = {
    "detect": f"--recipe own-c4 --data shapes --size 48 --labels 4 --head-width 0.05 --iterations 1 --batch-size 2 "
    f"--warmup 1 --milestones 1 --sides 48 --test-side 48 --test-images 2 --regions 8 --proposals 8 --precise-bn 1 "
    f"--no-masks {COMPUTE}",
    "segment": f"--recipe own-fcn --data shapes --size 48 --labels 4 --head-width 0.05 --iterations 1 --milestones 1 "
    f"--crop 33 --batch-size 2 --test-images 2 {COMPUTE}",
}


@pytest.fixture
def given(tmp_path) -> Path:
    """Weights that name the normalisation of their images."""
    content = as_safetensors(build_encoder(ENCODER).state_dict(), Description(ENCODER, False, 64, *HALF))
    (tmp_path / "given.safetensors").write_bytes(content)
    return tmp_path / "given.safetensors"


def test_it_is_that_of_what_a_run_starts_from(tmp_path, given):
    assert normalisation_of_start("random") == normalisation_of_start("torchvision:resnet50") == IMAGENET
    assert normalisation_of_start("shapes-cpu") == CIFAR
    assert normalisation_of_start("timm:vit_tiny_patch16_224.augreg_in21k") == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation_of_start(str(given)) == HALF
    Run.create(tmp_path / "pretrained", Config(views=Views("cifar", 32)))
    assert normalisation_of_start(str(tmp_path / "pretrained")) == CIFAR
    text = written(HALF)
    FinetuneRun.create(tmp_path / "finetuned", ClassificationConfig(views=TrainingViews(32, normalisation=text)))
    DetectionRun.create(tmp_path / "detected", DetectionConfig(model=Model(normalisation=text)))
    assert normalisation_of_start(str(tmp_path / "finetuned")) == HALF
    assert normalisation_of_start(str(tmp_path / "detected")) == HALF
    with pytest.raises(UserError, match="nowhere: no such path"):
        normalisation_of_start("nowhere")


@pytest.mark.parametrize("values", [IMAGENET, CIFAR, HALF])
def test_as_text_and_back(values):
    assert normalisation_of(written(values)) == values
    assert written(IMAGENET) == "imagenet"


@pytest.mark.parametrize("text", ["imagnet", "0.5/0.2", "1,2,3", "1,2,3/1,2,0", ""])
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match=f"--normalisation {text}: auto, imagenet, cifar"):
        normalisation_of(text)


def test_a_network_sees_the_same_colours_as_the_pre_training(given):
    """And one of a run from before the option, ImageNet's to the last bit."""
    image = torch.randint(0, 256, (3, 33, 33), dtype=torch.uint8)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in HALF)
    for config, model in ((DetectionConfig(), build), (SegmentationConfig(), build_fcn)):
        config = replace(config, encoder=replace(config.encoder, encoder=ENCODER))
        sizes = (3, 0) if model is build else (3,)
        before = model(config, *sizes)
        assert torch.equal(before.mean.flatten(), torch.tensor(MEAN))
        assert torch.equal(before.std.flatten(), torch.tensor(STD))
        text = written(normalisation_of_start(str(given)))
        after = model(replace(config, model=replace(config.model, normalisation=text)), *sizes)
        torch.testing.assert_close((image - after.mean) / after.std, (image / 255 - mean) / std)
        assert not {"mean", "std"} & set(after.state_dict())  # Detectron2's checkpoints have none either


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_run_keeps_what_was_decided(task, tmp_path, given, capsys):
    """A trained network needs the weights that it started from no longer."""
    folder = tmp_path / "run"
    main([task, str(given), *shlex.split(TINY[task]), "--out", str(folder)])
    run = (DetectionRun if task == "detect" else SegmentationRun)(folder)
    assert run.config().model.normalisation == written(HALF)
    printed = "".join(capsys.readouterr().err.split())
    assert f"startingfrom{given}" in printed
    assert "normalisedby" not in printed
    given.unlink()
    if task == "detect":
        network = moco.load_detector(folder).detector
        assert network.mean.flatten().tolist() == [255 * value for value in HALF[0]]
    auto = replace(run.config(), model=replace(run.config().model, normalisation="auto"))
    assert as_before(auto, run.config()) == run.config()
    main([task, str(folder), "--eval-only", "--workers", "0", "--out", str(tmp_path / "again")])


def test_an_option_stands(tmp_path, given, capsys):
    main(
        ["segment", str(given), *shlex.split(TINY["segment"]), "--normalisation", "cifar", "--out", str(tmp_path / "r")]
    )
    assert SegmentationRun(tmp_path / "r").config().model.normalisation == "cifar"
    assert "itsimageswerenormalisedbymean(0.5,0.25,0.125)" in "".join(capsys.readouterr().err.split())
