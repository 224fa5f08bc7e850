"""Settings follow from the images, the labels, the machine and what a run starts from; published ones stand."""

from dataclasses import replace

import pytest

from moco.encoders import Description, build_encoder, save_encoder
from moco.encoders.files import as_safetensors
from moco.runs.config import Config, Encoder, Views
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.transfer.classification.config import Protocol
from moco.transfer.classification.recipes import CLASSIFICATION
from moco.transfer.classification.suggest import Facts, Seen, seen_by, suggest
from moco.transfer.normalisation import normalisation_of
from moco.transfer.start import encoder_of
from moco.views.recipes import CIFAR as NORMALISATION
from moco.views.recipes import IMAGENET

FEW = Facts(images=200, smallest=20, side=32, gpu=False)
OWN = CLASSIFICATION["own"].config
GIVEN = replace(OWN, encoder=Encoder("tiny", init="runs/cifar"))
CIFAR = Seen(32, "cifar")


@pytest.mark.parametrize("start", ["a file", "timm:vit_tiny_patch16_224", "torchvision:resnet18", "cifar10-cpu"])
def test_images_look_as_in_the_pre_training(tmp_path, start):
    odd = ((0.48145466, 0.4578275, 0.40821073), (0.2, 0.3, 0.4))  # as CLIP's: more digits than six
    if start == "a file":
        described = Description("tiny", image_size=16, mean=odd[0], std=odd[1])
        (tmp_path / "odd.safetensors").write_bytes(as_safetensors(build_encoder("tiny").state_dict(), described))
        start, expected = str(tmp_path / "odd.safetensors"), odd
    elif start.startswith("timm:"):
        pytest.importorskip("timm")
        expected = ((0.5,) * 3,) * 2
    else:
        expected = NORMALISATION if start == "cifar10-cpu" else IMAGENET
    config, _ = suggest(replace(OWN, encoder=Encoder("tiny", init=start)), FEW, seen_by(start))
    assert normalisation_of(config.views.normalisation) == expected
    again, _ = suggest(config, FEW, seen_by("random"))
    assert again.views.normalisation == config.views.normalisation


@pytest.mark.parametrize(
    "text", ["imagnet", "0.5,0.5,0.5", "0.5,0.5,0.5/0.2,0.2", "0.5,0.5,0.5/0,0,0", "a,b,c/d,e,f", "/"]
)
def test_a_normalisation_that_is_none_is_named(text):
    with pytest.raises(UserError, match=f"--normalisation {text}: auto, imagenet, cifar, or"):
        suggest(replace(OWN, views=replace(OWN.views, normalisation=text)), FEW, None)


def test_given_weights_take_smaller_steps_and_fewer_and_keep_their_size():
    scratch, why = suggest(OWN, FEW, None)
    given, _ = suggest(GIVEN, FEW, CIFAR)
    assert given.training.lr < scratch.training.lr
    assert given.training.iterations < scratch.training.iterations
    assert given.training.warmup == 0 < scratch.training.warmup
    assert (given.views.image_size, given.views.normalisation) == (32, "cifar")
    assert scratch.encoder.encoder == "tiny"  # on a CPU
    assert all(choice.reason for choice in why)


def test_random_weights_in_a_comparison_see_images_as_the_given_ones_do():
    config, _ = suggest(replace(OWN, encoder=Encoder("resnet18", True)), FEW, Seen(48, "imagenet"))
    assert (config.views.image_size, config.views.normalisation) == (48, "imagenet")
    assert (config.encoder.encoder, config.encoder.small_stem) == ("resnet18", True)


def test_a_gpu_takes_larger_images_and_encoders():
    facts = replace(FEW, side=500, gpu=True, images=30_000)
    config, _ = suggest(OWN, facts, None)
    assert (config.views.image_size, config.encoder.encoder, config.training.batch_size) == (224, "resnet50", 128)
    small, _ = suggest(OWN, replace(facts, side=32), None)
    assert (small.encoder.encoder, small.encoder.small_stem) == ("resnet18", True)


def test_published_settings_in_steps():
    """ImageNet: 100 epochs; iNaturalist: the learning rate falls at 70 and 90 % of the run."""
    facts = Facts(images=1_281_167, smallest=732, side=375, gpu=True)
    given = replace(CLASSIFICATION["imagenet-r50"].config, encoder=Encoder(init="moco.pth.tar"))
    config, _ = suggest(given, facts, Seen(224, "imagenet"))
    assert (config.training.lr, config.training.batch_size) == (0.03, 256)
    assert config.training.iterations == pytest.approx(100 * 1_281_167 / 256, abs=1)
    assert config.views.image_size == 224
    scratch, _ = suggest(CLASSIFICATION["imagenet-r50"].config, facts, None)
    assert scratch.training.lr == 0.1
    inat, _ = suggest(CLASSIFICATION["inat18-r50"].config, replace(facts, images=437_513), None)
    assert inat.training.lr == 0.1
    given = replace(CLASSIFICATION["inat18-r50"].config, encoder=Encoder(init="moco.pth.tar"))
    assert suggest(given, facts, Seen(224, "imagenet"))[0].training.lr == 0.025
    shares = [step / inat.training.iterations for step in inat.training.milestones]
    assert shares == pytest.approx([0.7, 0.9], abs=1e-4)


def test_the_learning_rate_follows_the_batch():
    wanted = replace(CLASSIFICATION["imagenet-r50"].config.training, batch_size=64)
    config = replace(CLASSIFICATION["imagenet-r50"].config, training=wanted, encoder=Encoder(init="moco.pth.tar"))
    planned, _ = suggest(config, Facts(10_000, 10, 224, True), Seen(224, "imagenet"))
    assert planned.training.lr == pytest.approx(0.0075)
    assert planned.training.iterations == pytest.approx(100 * 10_000 / 64, abs=1)


def test_steps_as_given_and_the_falls_follow():
    config = CLASSIFICATION["imagenet-r50"].config
    planned, _ = suggest(replace(config, training=replace(config.training, iterations=200)), FEW, None)
    assert (planned.training.iterations, planned.training.milestones) == (200, (60, 120, 180))


def test_frozen_features_have_settings_of_their_own():
    linear, _ = suggest(replace(GIVEN, model=Protocol("linear")), FEW, CIFAR)
    assert linear.training.lr == pytest.approx(30 * linear.training.batch_size / 256, rel=1e-2)
    assert linear.training.weight_decay == 0
    assert linear.training.iterations >= 1000
    knn, _ = suggest(replace(GIVEN, model=Protocol("knn")), FEW, CIFAR)
    assert knn.model.k == 20
    assert suggest(replace(GIVEN, model=Protocol("knn")), replace(FEW, smallest=900), CIFAR)[0].model.k == 200


def test_how_images_were_seen_in_pre_training(tmp_path):
    assert seen_by("random") is None
    assert seen_by("torchvision:resnet50") == Seen(224, "imagenet")
    Run.create(tmp_path / "run", Config(views=Views("cifar", 24)))
    assert seen_by(str(tmp_path / "run")) == Seen(24, "cifar")


def test_a_file_that_describes_itself_is_taken_at_its_word(tmp_path):
    path, (mean, std) = tmp_path / "mine.safetensors", NORMALISATION
    encoder = build_encoder("resnet18w0.25", small_stem=True)
    path.write_bytes(as_safetensors(encoder.state_dict(), Description("resnet18w0.25", True, 48, mean, std)))
    assert seen_by(str(path)) == Seen(48, "cifar")
    assert encoder_of(str(path), Encoder("resnet50")) == Encoder("resnet18w0.25", True, init=str(path))
    save_encoder(encoder, path)
    assert seen_by(str(path)) == Seen(224, "imagenet")
