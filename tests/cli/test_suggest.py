"""What is suggested can run, and the doctor would not call it ill."""

import math
import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moco.cli.commands import suggest as suggest_command
from moco.cli.main import main
from moco.encoders import Description, build_encoder
from moco.encoders.files import as_safetensors
from moco.runs.config import Compute, Config, Encoder, Views, check, in_steps
from moco.runs.folder import Run
from moco.runs.options import with_options
from moco.runs.recipes.recipes import RECIPES, get_recipe
from moco.runs.suggest import Facts, from_given, packed_side, suggest, warnings
from moco.runtime.errors import UserError
from moco.training.estimate import Estimate
from moco.transfer.classification.suggest import seen_by
from moco.views import get_pretext

FACTS = st.builds(
    Facts,
    source=st.just("folder:images"),
    images=st.integers(8, 10**9),
    side=st.integers(1, 4000),
    labelled=st.booleans(),
    gpu=st.booleans(),
)


@given(FACTS, st.one_of(st.none(), st.integers(1, 2000)))
@settings(deadline=None)
def test_what_is_suggested_can_run(facts, epochs):
    config, choices = suggest(facts, Compute(), epochs)
    check(config)
    training, contrast = config.training, config.contrast
    assert contrast.queue_size < facts.images / 2  # negatives are of other images
    assert training.batch_size <= facts.images
    assert epochs is None or training.epochs == epochs
    steps = training.epochs * facts.images / training.batch_size
    assert steps * (1 - contrast.key_momentum) >= 10 or contrast.key_momentum in (0.9, 0.97)
    assert config.views.image_size <= max(32, facts.side)
    for choice in choices:
        assert choice.reason
        assert choice.published


@given(st.integers(1000, 10**8), st.booleans())
@settings(deadline=None)
def test_more_images_never_have_a_smaller_dictionary(images, gpu):
    sizes = [
        suggest(Facts("x", n, 64, True, gpu), Compute())[0].contrast.queue_size
        for n in (images, 2 * images, 8 * images)
    ]
    assert sizes == sorted(sizes)


@given(FACTS)
@settings(deadline=None)
def test_given_weights_are_trained_for_less_time_at_a_lower_rate(facts):
    weights = Encoder("resnet18", small_stem=False, init="torchvision:resnet18")
    scratch, _ = suggest(facts, Compute())
    config, choices = suggest(replace(facts, given=weights), Compute())
    check(config)
    assert config.encoder == weights
    assert config.training.lr < scratch.training.lr
    assert config.training.epochs <= scratch.training.epochs
    assert config.training.epochs == max(1, scratch.training.epochs // 4)
    assert config.training.warmup == min(1, config.training.epochs / 2)
    reasons = {choice.option: choice.reason for choice in choices}
    assert reasons["encoder"] == "that of torchvision:resnet18"
    assert "from random weights" in reasons["lr"]


def test_a_run_is_suggested_from_weights_that_come_along(tmp_path, random_npz, capsys):
    out = tmp_path / "suggested.yaml"
    main(["suggest", f"npz:{random_npz(96)}", "--init", "shapes-cpu", "--out", str(out), "--device", "cpu"])
    assert "that of shapes-cpu" in re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert get_recipe(str(out)).config.encoder == Encoder("tiny", init="shapes-cpu")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_starts_from_given_weights_by_the_same_rules(name):
    weights = Encoder("resnet50", small_stem=False, init="torchvision:resnet50")
    recipe = with_options(RECIPES[name].config, init=weights.init)
    config, choices = from_given(recipe, weights)
    check(config)
    assert config.encoder == weights
    before, after = recipe.training, config.training
    assert after.lr == pytest.approx(0.3 * before.lr)
    if before.iterations is None:
        assert after.epochs == max(1, before.epochs // 4)
        assert after.warmup >= min(1, after.epochs / 2)
        share = after.epochs / before.epochs
        assert after.milestones == pytest.approx([share * each for each in before.milestones])
    now, then = ({**vars(each.encoder), **vars(each.training)} for each in (config, recipe))
    assert {choice.option: choice.value for choice in choices} == {
        option: value for option, value in now.items() if value != then[option]
    }
    assert all(choice.published.endswith(f"({name})") for choice in choices)


def test_what_the_command_line_names_stands(tmp_path, random_npz, capsys):
    words = ["pretrain", "cifar10-r18", "--data", f"npz:{random_npz(16, 32)}", "--init", "shapes-cpu", "--epochs", "2"]
    words += ["--batch-size", "8", "--bn-group", "4", "--queue-size", "8", "--knn-every", "0", "--image-size", "32"]
    words += ["--device", "cpu", "--workers", "0", "--lr=0.05", "--out", str(tmp_path / "run")]
    main(words)
    out = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "cifar10-r18 from shapes-cpu" in out
    assert "--encoder tiny that of shapes-cpu resnet18 (cifar10-r18)" in out
    assert "--warmup 1.0 the encoder waits" in out
    config = Run(tmp_path / "run").config()
    assert config.encoder == Encoder("tiny", init="shapes-cpu")
    assert (config.training.lr, config.training.epochs) == (0.05, 2)
    main([*words, "--resume", "auto", "--epochs", "2"])  # as it was started, and nothing is changed again
    assert "cifar10-r18 from" not in capsys.readouterr().out
    assert Run(tmp_path / "run").config() == config


@pytest.mark.slow
def test_a_recipe_made_for_given_weights_is_not_changed_again(tmp_path, random_npz, capsys):
    recipe, data = tmp_path / "given.yaml", f"npz:{random_npz(16, 32)}"
    main(["suggest", data, "--init", "shapes-cpu", "--out", str(recipe), "--device", "cpu"])
    wanted = get_recipe(str(recipe)).config.training
    capsys.readouterr()
    main(["pretrain", str(recipe), "--iterations", "1", "--init", "shapes-cpu", "--out", str(tmp_path / "run")])
    assert "from shapes-cpu" not in capsys.readouterr().out
    started = in_steps(with_options(get_recipe(str(recipe)).config, iterations=1), set())
    assert Run(tmp_path / "run").config().training == started.training
    assert started.training.lr == wanted.lr


def test_a_run_s_frozen_patches_stay_frozen(monkeypatch, tmp_path, random_npz):
    """The encoder goes on with all of its own settings."""
    own = Encoder("tiny", freeze_patches=True)
    trained = SimpleNamespace(config=Config(encoder=own), encoder=nn.Identity())
    monkeypatch.setattr("moco.cli.commands.suggest.open_trained", lambda _: trained)
    facts = []
    monkeypatch.setattr("moco.cli.commands.suggest._fitting", lambda given, *_: facts.append(given) or exit())
    with pytest.raises(SystemExit):
        main(["suggest", f"npz:{random_npz(96)}", "--init", "runs/v3", "--out", str(tmp_path / "x.yaml")])
    assert facts[0].given == replace(own, init="runs/v3")


def test_published_settings_come_out_at_their_scale():
    imagenet, _ = suggest(Facts("x", 1_281_167, 375, True, True), Compute())
    assert (imagenet.contrast.queue_size, imagenet.contrast.key_momentum) == (65536, 0.999)
    assert (imagenet.training.batch_size, imagenet.training.lr, imagenet.training.epochs) == (256, 0.03, 200)
    assert (imagenet.encoder.encoder, imagenet.views.image_size) == ("resnet50", 224)
    cifar, _ = suggest(Facts("x", 50_000, 32, True, True), Compute())
    assert (cifar.contrast.queue_size, cifar.contrast.temperature) == (4096, 0.1)
    assert (cifar.training.batch_size, cifar.training.lr) == (128, 0.06)
    assert (cifar.encoder.encoder, cifar.encoder.small_stem) == ("resnet18", True)
    few, _ = suggest(Facts("x", 10_000, 32, True, True), Compute())
    assert (few.training.batch_size, few.training.lr, few.training.optimizer) == (64, 0.03, "sgd")  # in proportion


def test_the_small_encoder_is_trained_by_muon_unless_its_weights_are_given():
    new, choices = suggest(Facts("x", 10_000, 32, True, False), Compute())
    assert (new.encoder.encoder, new.training.optimizer, new.training.lr) == ("tiny", "muon", 0.06)
    assert {"optimizer", "lr"} <= {choice.option for choice in choices}
    given, _ = suggest(Facts("x", 10_000, 32, True, False, given=Encoder("tiny", init="shapes-cpu")), Compute())
    assert (given.training.optimizer, given.training.lr) == ("sgd", pytest.approx(0.3 * 0.03))
    continued, changed = from_given(RECIPES["cifar10-cpu"].config, Encoder("tiny", init="shapes-cpu"))
    assert continued.training.optimizer == "sgd"
    assert "optimizer" in {choice.option for choice in changed}


def test_warnings_before_a_run_is_started():
    text = " ".join(warnings(Facts("x", 300, 32, labelled=False, gpu=False), Views(), broken=3, examined=300))
    assert "few" in text
    assert "no labels" in text
    assert "3 of the 300 images" in text
    assert "--max-bad" not in text  # 1 % is allowed
    assert "--max-bad 0.3 " in " ".join(warnings(Facts("x", 40, 32, True, False), Views(), broken=10, examined=40))
    assert not warnings(Facts("x", 30_000, 32, labelled=True, gpu=False), Views(), broken=0, examined=500)


@pytest.mark.parametrize("views", ["v1", "cifar", "v3", "shapes"])
def test_images_much_larger_than_views_need_are_to_be_resized_once(views):
    own = Views(views, 64)
    side = packed_side(own)
    smallest = min(pretext.area[0] for pretext in get_pretext(views))
    assert math.sqrt(smallest) * (side - 1) < 64 <= math.sqrt(smallest) * side  # the smallest crop's side
    facts = Facts("folder:my photographs", 30_000, 2 * side, labelled=True, gpu=False, decoded=True)
    (text,) = warnings(facts, own, broken=0, examined=500)
    assert f"moco pack 'folder:my photographs' packed --size {side}, and train on shards:packed" in text
    assert not warnings(replace(facts, side=2 * side - 1), own, broken=0, examined=500)
    assert not warnings(replace(facts, decoded=False), own, broken=0, examined=500)


@pytest.fixture
def npz(random_npz):
    return random_npz(128, size=16, classes=2)


@pytest.mark.slow
def test_the_suggested_recipe_runs(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(shlex.split(f"suggest npz:{npz} --hours 0.001 --device cpu --precision fp32"))
    message = capsys.readouterr().out
    assert "--queue-size" in message
    assert "moco pretrain suggested.yaml" in message
    recipe = get_recipe("suggested.yaml")
    assert recipe.config.data.source == f"npz:{npz}"
    assert recipe.config.contrast.queue_size < 64
    main(shlex.split("pretrain suggested.yaml --epochs 1 --warmup 0 --knn-k 5 --batch-size 32 --bn-group 16"))
    assert (tmp_path / "runs/suggested/metrics.jsonl").exists()
    main(shlex.split("pretrain suggested.yaml --resume"))
    for line, message in (
        (f"suggest npz:{npz}", "--overwrite"),
        (f"suggest npz:{npz} --out recipe.txt", ".yaml"),
        ("pretrain none.yaml", "none.yaml: cannot be read as a recipe"),
    ):
        with pytest.raises(SystemExit) as left:
            main(shlex.split(line))
        assert left.value.code == 2
        assert message in capsys.readouterr().err


def test_the_batch_is_what_fits_into_memory(npz, tmp_path, capsys, monkeypatch):
    tried = []

    def small_gpu(config, *_):
        tried.append(config.training.batch_size)
        if tried[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return Estimate(steps=100, seconds=60, memory_mb=1234)

    monkeypatch.setattr("moco.cli.commands.suggest.estimate", small_gpu)
    line = f"suggest npz:{npz} --out {tmp_path / 'some.yaml'} --device cpu"
    main(shlex.split(line))
    assert tried == [64, 32, 16]
    training = get_recipe(str(tmp_path / "some.yaml")).config.training
    assert (training.batch_size, training.lr, training.optimizer) == (16, 0.06, "muon")
    message = capsys.readouterr().out
    assert "what fits into memory" in " ".join(message.split())
    assert "1,234 MB of memory" in message

    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("moco.cli.commands.suggest.estimate", none)
    with pytest.raises(SystemExit) as left:
        main(shlex.split(f"{line} --overwrite"))
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "moco: cpu: its memory does not hold a step of 2 images"


def test_the_start_of_a_run_is_of_its_time(npz, tmp_path, capsys, monkeypatch):
    """Of 101 s, 30 pass before the first step, so the rest has 71 in place of the usual epochs' 350."""
    monkeypatch.setattr(suggest_command, "time", SimpleNamespace(process_time=lambda: 30.0, perf_counter=lambda: 0.0))
    monkeypatch.setattr(suggest_command, "estimate", lambda *_: Estimate(steps=1000, seconds=350, memory_mb=1))
    main(shlex.split(f"suggest npz:{npz} --device cpu --out {tmp_path / 'usual.yaml'}"))
    usual = get_recipe(str(tmp_path / "usual.yaml")).config.training.epochs
    capsys.readouterr()
    main(shlex.split(f"suggest npz:{npz} --device cpu --hours {101 / 3600} --out {tmp_path / 'some.yaml'}"))
    epochs = get_recipe(str(tmp_path / "some.yaml")).config.training.epochs
    assert epochs == usual // 5
    assert "about 1.7 minutes here for 200 steps" in " ".join(capsys.readouterr().out.split())


def test_a_cpu_has_small_views_first_where_that_was_tried():
    views = suggest(Facts("x", 5000, 32, False, False), Compute())[0].views
    assert (views.image_size, views.start_size, views.start_share) == (32, 16, 0.6)
    weights = Encoder("resnet18", small_stem=False, init="torchvision:resnet18")
    for other in (
        Facts("x", 5000, 64, False, False),
        Facts("x", 5000, 32, False, True),
        Facts("x", 5000, 32, False, False, given=weights),
    ):
        assert suggest(other, Compute())[0].views.start_scale == 1


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    path = tmp_path / "some.yaml"
    for text in ("7", "data: 3", "nonsense: {}", yaml.safe_dump({"training": {"lr": "high"}})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"some\.yaml"):
            get_recipe(str(path))


def test_logs_of_small_sets_do_not_fail():
    for images in range(2, 40):
        config, _ = suggest(Facts("x", images, 32, False, False), Compute())
        assert math.isfinite(config.training.lr)


@pytest.mark.slow
def test_an_encoder_of_a_fixed_size_has_images_of_that_size(tmp_path, random_npz, capsys):
    """A ViT's positions are of one size: nothing smaller is chosen for a CPU, nor drawn first."""
    content = as_safetensors(build_encoder("vit_s_16").state_dict(), Description("vit_s_16"))
    (tmp_path / "vit.safetensors").write_bytes(content)
    init, data = str(tmp_path / "vit.safetensors"), f"npz:{random_npz(16, 32)}"
    out = tmp_path / "vit.yaml"
    main(["suggest", data, "--init", init, "--out", str(out), "--device", "cpu"])
    assert get_recipe(str(out)).config.views.image_size == 224
    config, choices = from_given(RECIPES["shapes-cpu"].config, Encoder("vit_s_16", init=init), fixed_size=224)
    assert (config.views.image_size, config.views.start_size) == (224, 224)
    assert "vit_s_16 takes images of 224 pixels only" in {choice.reason for choice in choices}
    assert seen_by(init).fixed
