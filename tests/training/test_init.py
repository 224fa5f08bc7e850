"""--init: a run starts from given weights, and knn takes them too."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from moco.cli.main import main
from moco.contrast import MoCo
from moco.data import Source
from moco.data.dataset import InMemory
from moco.encoders import build_encoder, save_encoder
from moco.evaluation import open_trained
from moco.runs.config import Encoder
from moco.runs.folder import Run
from moco.runs.options import with_options
from moco.runs.recipes.recipes import RECIPES
from moco.runs.weights import load_weights
from moco.runtime.errors import UserError
from moco.training.build import device_of
from moco.training.step import Pretraining
from moco.transfer.start import build_started
from moco.views.recipes import CIFAR

CONFIG = with_options(
    RECIPES["shapes-cpu"].config, batch_size=8, bn_group=4, queue_size=16, epochs=1, image_size=32, knn_every=0
)
CONFIG = replace(CONFIG, compute=replace(CONFIG.compute, device="cpu", precision="fp32", workers=0))


@pytest.fixture
def given(tmp_path):
    """Weights in a file, and their encoder."""
    torch.manual_seed(1)
    encoder = build_encoder("tiny")
    encoder(torch.randn(8, 3, 32, 32))  # moves BN's statistics
    save_encoder(encoder, tmp_path / "given.safetensors")
    return tmp_path / "given.safetensors", encoder


def equal(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def started(config, folder) -> Pretraining:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    run = Pretraining(config, Source(InMemory(images), None, None), Run(folder), device_of(config.compute))
    run.start()
    return run


@pytest.mark.parametrize("mechanism", ["moco", "end-to-end", "memory-bank", "moco-v3"])
def test_query_and_key_start_from_the_weights(tmp_path, given, mechanism):
    path, encoder = given
    config = with_options(CONFIG, init=str(path), mechanism=mechanism, symmetric=False)
    built = started(config, tmp_path).mechanism
    assert equal(built.query.backbone, encoder)
    if mechanism != "memory-bank":
        assert equal(built.key, built.query)


def test_the_first_loss_is_that_of_the_same_encoder_by_hand(tmp_path, given):
    path, encoder = given
    run = started(with_options(CONFIG, init=str(path)), tmp_path)
    contrast = CONFIG.contrast
    torch.manual_seed(CONFIG.training.seed)
    build_encoder("tiny")  # the head is drawn after the encoder
    by_hand = MoCo(
        encoder,
        contrast.dim,
        contrast.queue_size,
        contrast.key_momentum,
        contrast.temperature,
        head=contrast.head,
        symmetric=contrast.symmetric,
        bn_group=contrast.bn_group,
        shuffle=contrast.shuffle,
    )
    view1, view2 = torch.randn(2, 8, 3, 32, 32).unbind()
    random = started(CONFIG, tmp_path).mechanism(view1, view2).loss
    loss = run.mechanism(view1, view2).loss
    torch.testing.assert_close(loss, by_hand(view1, view2).loss)
    assert not torch.allclose(loss, random)


def test_a_run_is_started_from_a_file_then_another_from_the_run(tmp_path, given, random_npz, caplog, capsys):
    path, _ = given
    words = ["--data", f"npz:{random_npz(16, 32)}", "--device", "cpu", "--precision", "fp32", "--iterations", "2"]
    words += ["--batch-size", "8", "--bn-group", "4", "--queue-size", "16", "--knn-every", "0", "--workers", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    main(["pretrain", "shapes-cpu", *words, "--out", str(one), "--init", str(path)])
    assert Run(one).config().encoder.init == str(path)
    assert f"starting from {path}: " in (one / "log.txt").read_text()
    path.unlink()  # a run that is continued does not load it again
    main(["pretrain", "shapes-cpu", "--out", str(one), "--resume"])
    assert (one / "log.txt").read_text().count("starting from ") == 1
    main(["pretrain", "shapes-cpu", *words, "--out", str(two), "--init", str(one)])
    assert "the head starts at random" in (two / "log.txt").read_text()


def test_another_normalisation_is_remarked_on(tmp_path, caplog):
    """Of the views' images, ImageNet's or CIFAR-10's; the weights name theirs, CIFAR-10's."""
    caplog.set_level(logging.INFO, "moco")
    started(with_options(CONFIG, init="shapes-cpu"), tmp_path)
    build_started(Encoder("tiny", init="shapes-cpu"), 0, normalisation=CIFAR)
    assert caplog.text.count("starting from shapes-cpu: ") == 2
    assert "normalised" not in caplog.text
    started(with_options(CONFIG, init="shapes-cpu", views="v2"), tmp_path)
    assert "its images were normalised by mean (0.4914," in caplog.text


def test_weights_that_do_not_fit_leave_no_folder(tmp_path, given, capsys):
    path, _ = given
    for init, message in ((str(path), "does not fit the encoder: missing: conv1.weight"), ("nowhere", "no such path")):
        with pytest.raises(SystemExit) as left:
            main(["pretrain", "cifar10-r18", "--device", "cpu", "--out", str(tmp_path / "run"), "--init", init])
        assert left.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_random_leaves_the_encoder_as_it_is(given):
    _, encoder = given
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert load_weights("random", encoder).tensors == 0
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_knn_takes_a_library_s_weights(tmp_path, monkeypatch, random_npz):
    encoder = build_encoder("resnet18")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: encoder.state_dict())
    monkeypatch.chdir(tmp_path)
    data = random_npz(24, 32)
    main(["knn", "torchvision:resnet18", "--data", f"npz:{data}", "--device", "cpu", "--image-size", "32", "--k", "3"])
    assert (tmp_path / "torchvision-resnet18.knn.json").exists()


def test_what_names_nothing_to_evaluate(tmp_path, given):
    path, _ = given
    with pytest.raises(UserError, match="give --encoder"):
        open_trained(path)
    with pytest.raises(UserError, match="no weights to evaluate"):
        open_trained(path.parent.joinpath("random").relative_to(path.parent))
