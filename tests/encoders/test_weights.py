"""Weights: every kind of file that is read, what is refused and in which words, and writing."""

import argparse
import os
import pickle
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import resnet18

from moco.encoders import build_encoder, fill, read_arch, read_file, save_encoder
from moco.runs.weights import load_weights
from moco.runtime.errors import UserError

ZERO = torch.zeros(())  # expanded, it takes no room in a file


@pytest.fixture(scope="module")
def source():
    """torchvision's own ResNet-18, with a classifier and with running statistics that are not the initial ones."""
    model = resnet18()
    for name, buffer in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.uniform_(0.5, 1.5)
    return model


def released(source: nn.Module, version: int) -> dict:
    """A checkpoint as main_moco.py of the released code writes it."""
    query = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    layers = {1: {"fc": (128, 512)}, 2: {"fc.0": (512, 512), "fc.2": (128, 512)}}[version]
    for layer, shape in layers.items():
        query |= {f"{layer}.weight": torch.randn(shape), f"{layer}.bias": torch.randn(shape[0])}
    state = OrderedDict((f"module.encoder_q.{key}", value) for key, value in query.items())
    state |= {f"module.encoder_k.{key}": ZERO.expand_as(value) for key, value in query.items()}
    state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = torch.optim.SGD(source.parameters(), lr=0.03, momentum=0.9).state_dict()
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}


def ours(source: nn.Module) -> dict:
    """A checkpoint as a run of ours writes it."""
    backbone = {f"query.backbone.{key}": value for key, value in source.state_dict().items() if key[:3] != "fc."}
    others = {f"key.backbone.{key[15:]}": ZERO.expand_as(value) for key, value in backbone.items()}
    others |= {"query.head.weight": torch.randn(128, 512), "queue.keys": torch.randn(64, 128)}
    return {"step": 7, "config": {"encoder": "resnet18"}, "mechanism": backbone | others}


def assert_filled(encoder: nn.Module, source: nn.Module) -> None:
    expected = source.state_dict()
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("name", "content", "zipped"),
    [
        ("ours.pt", ours, True),
        ("v1.pth.tar", lambda source: released(source, 1), False),  # as PyTorch before 1.6 wrote it
        ("v2.pth.tar", lambda source: released(source, 2), True),
        ("torchvision.pth", lambda source: source.state_dict(), True),
    ],
)
def test_every_kind_of_checkpoint_fills_the_encoder(tmp_path, source, name, content, zipped):
    torch.save(content(source), tmp_path / name, _use_new_zipfile_serialization=zipped)
    encoder = build_encoder("resnet18")
    load_weights(str(tmp_path / name), encoder)
    assert_filled(encoder, source)


def test_safetensors_fill_the_encoder(tmp_path, source):
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    encoder = build_encoder("resnet18")
    load_weights(str(tmp_path / "model.safetensors"), encoder)
    assert_filled(encoder, source)


def test_a_classifier_that_the_encoder_keeps_in_part_is_read_in_part(tmp_path):
    with_classifier = build_encoder("mobilenet_v3_small").state_dict()
    last = {"classifier.3.weight": torch.randn(1000, 1024), "classifier.3.bias": torch.randn(1000)}
    torch.save(with_classifier | last, tmp_path / "mobilenet.pth")
    encoder = build_encoder("mobilenet_v3_small")
    load_weights(str(tmp_path / "mobilenet.pth"), encoder)
    assert torch.equal(encoder.classifier[0].weight, with_classifier["classifier.0.weight"])


def test_bn_may_lack_its_count_of_batches(tmp_path, source):
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    encoder = build_encoder("resnet18")
    load_weights(str(tmp_path / "old.pth"), encoder)
    assert_filled(encoder, source)


def test_read_arch(tmp_path, source):
    torch.save(released(source, 2), tmp_path / "released.pth.tar")
    torch.save(ours(source), tmp_path / "ours.pt")
    save_encoder(build_encoder("tiny"), tmp_path / "tiny.safetensors")
    assert read_arch(tmp_path / "released.pth.tar") == "resnet18"
    assert read_arch(tmp_path / "ours.pt") is None
    assert read_arch(tmp_path / "tiny.safetensors") is None


def refusal(encoder: nn.Module, path) -> str:
    """The message for a file that is refused: one line, with the path; the encoder stays as it was."""
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UserError) as caught:
        fill(encoder, read_file(path))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).strip()


def test_keys_that_do_not_fit_are_named(tmp_path):
    encoder = build_encoder("tiny")
    state = encoder.state_dict()
    for key in [key for key in state if key.startswith("stages.2.")]:
        del state[key]
    state["stem.0.weight"] = torch.zeros(32, 3, 7, 7)
    state["extra"] = torch.zeros(1)
    torch.save({"state_dict": {f"module.encoder_q.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    assert refusal(encoder, tmp_path / "x.pth") == (
        "does not fit the encoder: "
        "missing: stages.2.conv1.weight, stages.2.bn1.weight, stages.2.bn1.bias and 12 more; "
        "unexpected: extra; "
        "of another shape: stem.0.weight (32x3x7x7 in the file, 32x3x4x4 in the encoder) "
        "(another architecture)"
    )


def test_another_encoders_checkpoint_is_refused(tmp_path, source):
    torch.save(released(source, 1), tmp_path / "r18.pth.tar")
    message = refusal(build_encoder("tiny"), tmp_path / "r18.pth.tar")
    assert "missing: stem.0.weight, " in message
    assert "unexpected: conv1.weight, bn1.weight, bn1.bias and " in message


class Malicious:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_more_than_tensors_is_not_executed(tmp_path, zipped):
    content = {"state_dict": Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "bad.pth.tar", _use_new_zipfile_serialization=zipped)
    assert refusal(build_encoder("tiny"), tmp_path / "bad.pth.tar") == (
        f"cannot be read as weights: it names {os.mkdir.__module__}.mkdir, which is more than tensors, "
        "and nothing in a file is executed"
    )
    with pytest.raises(UserError, match=r"mkdir, which is more than tensors"):
        read_arch(tmp_path / "bad.pth.tar")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_with_its_arguments_is_refused_by_their_class(tmp_path):
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=0.03)}, tmp_path / "args.pth.tar")
    assert "it names argparse.Namespace, which is" in refusal(build_encoder("tiny"), tmp_path / "args.pth.tar")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_not_executed(tmp_path, protocol):
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "executed"), protocol))
    assert "more than tensors" in refusal(build_encoder("tiny"), tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["zipped.pth", "legacy.pth", "some.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, name, kept):
    encoder, path = build_encoder("tiny"), tmp_path / name
    if path.suffix == ".safetensors":
        save_encoder(encoder, path)
    else:
        torch.save(encoder.state_dict(), path, _use_new_zipfile_serialization=name == "zipped.pth")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert (
        refusal(encoder, path)
        == "cannot be read as weights: it is cut short, no checkpoint, or holds more than tensors"
    )


def test_what_is_no_checkpoint_is_refused(tmp_path):
    encoder = build_encoder("tiny")
    (tmp_path / "text.pth").write_text("conv1.weight: 3\n")
    assert "no checkpoint" in refusal(encoder, tmp_path / "text.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "it holds a list in place of a dict" in refusal(encoder, tmp_path / "list.pth")
    torch.save({"epoch": 3, "own": encoder.state_dict()}, tmp_path / "nested.pth")
    assert "it holds no weights, but epoch, own" in refusal(encoder, tmp_path / "nested.pth")
    torch.save({"state_dict": 5}, tmp_path / "number.pth")
    assert "it holds no weights, but state_dict" in refusal(encoder, tmp_path / "number.pth")
    torch.save({}, tmp_path / "empty.pth")
    assert "it holds no weights, but nothing" in refusal(encoder, tmp_path / "empty.pth")


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors"])
def test_an_absent_file_and_a_folder_are_refused(tmp_path, name):
    assert "cannot be read: No such file or directory" in refusal(build_encoder("tiny"), tmp_path / name)
    (tmp_path / name).mkdir()
    assert "cannot be read: " in refusal(build_encoder("tiny"), tmp_path / name)


def test_saving_and_loading_gives_the_same_features(tmp_path):
    saved, loaded = build_encoder("tiny"), build_encoder("tiny")
    images = torch.rand(2, 3, 16, 16)
    saved.to(memory_format=torch.channels_last)(images)  # moves BN's statistics; lays the weights out otherwise
    save_encoder(saved, tmp_path / "tiny.safetensors")
    load_weights(str(tmp_path / "tiny.safetensors"), loaded)
    assert_filled(loaded, saved)
    torch.testing.assert_close(loaded.eval()(images), saved.eval()(images))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "tiny.safetensors"
    save_encoder(build_encoder("tiny"), path)
    before = path.read_bytes()

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(UserError, match=r"tiny\.safetensors cannot be written: No space left on device"):
        save_encoder(build_encoder("tiny"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"tiny\.pt: .* end in \.safetensors"):
        save_encoder(build_encoder("tiny"), tmp_path / "tiny.pt")
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        save_encoder(build_encoder("tiny"), tmp_path / "absent" / "tiny.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        save_encoder(build_encoder("tiny"), tmp_path / "file" / "tiny.safetensors")
