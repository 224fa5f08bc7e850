"""A hub folder: timm and moco.load_encoder read it; the upload, with a stand-in for the hub."""

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm

import moco
from moco.encoders import Description
from moco.encoders.export import HUB_FILES, push_to_hub, to_hub
from moco.runtime.errors import UserError
from moco.views.recipes import CIFAR
from tests.encoders.export.models import assert_same_features, described, trained, write

LARGE = ("resnext50_32x8d", "vit_s_16")  # which timm builds with arguments


@pytest.mark.parametrize("name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_timm_and_moco_load_the_folder(tmp_path, name):
    encoder, description = trained(name), described(name)
    write(to_hub(encoder, description, tmp_path / "hub"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert_same_features(encoder, theirs, description.image_size)
    config = timm.data.resolve_model_data_config(theirs)
    assert tuple(config["input_size"]) == (3, description.image_size, description.image_size)
    assert (tuple(config["mean"]), tuple(config["std"])) == (description.mean, description.std)
    assert config["crop_pct"] == 0.875
    ours, preprocess = moco.load_encoder(tmp_path / "hub")
    assert_same_features(encoder, ours, description.image_size)
    assert (preprocess.size, preprocess.mean, preprocess.std) == (
        description.image_size,
        description.mean,
        description.std,
    )


@pytest.mark.parametrize(("name", "small_stem"), [("tiny", False), ("resnet18", True)])
def test_what_timm_has_not_is_for_moco_alone(tmp_path, name, small_stem):
    encoder, description = trained(name, small_stem), Description(name, small_stem, 32, *CIFAR)
    exported = to_hub(encoder, description, tmp_path / "hub")
    write(exported)
    assert "import timm" not in exported.usage
    ours, preprocess = moco.load_encoder(tmp_path / "hub")
    assert_same_features(encoder, ours, 32)
    assert (preprocess.size, preprocess.mean) == (32, CIFAR[0])
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)


def test_a_config_of_nonsense_is_not_believed(tmp_path):
    write(to_hub(trained("tiny"), Description("tiny", image_size=32), tmp_path / "hub"))
    config = json.loads((tmp_path / "hub/config.json").read_text())
    config["moco"] |= {"image_size": "large", "mean": [1, "a", 2], "small_stem": 3}
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    assert moco.load_encoder(tmp_path / "hub")[1].size == 32  # the weights' own header gives it


class Hub:
    """A stand-in for huggingface_hub.HfApi."""

    calls: list[tuple[str, Any]] = []  # noqa: RUF012
    there = False

    def repo_exists(self, repository: str) -> bool:
        return self.there

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", (repository, private, exist_ok)))

    def upload_folder(self, repo_id: str, folder_path: str, allow_patterns: list[str]) -> None:
        self.calls.append(("upload", (repo_id, Path(folder_path), allow_patterns)))


def test_the_upload(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    assert push_to_hub(tmp_path, "me/mine", private=True, overwrite=False) == "https://huggingface.co/me/mine"
    upload = ("upload", ("me/mine", tmp_path, list(HUB_FILES)))
    assert Hub.calls == [("create", ("me/mine", True, False)), upload]
    monkeypatch.setattr(Hub, "there", True)
    with pytest.raises(UserError, match="--push me/mine: exists already: --overwrite adds a commit to it"):
        push_to_hub(tmp_path, "me/mine", private=True, overwrite=False)
    assert len(Hub.calls) == 2
    push_to_hub(tmp_path, "me/mine", private=False, overwrite=True)
    assert Hub.calls[2:] == [("create", ("me/mine", False, True)), upload]


def test_an_upload_that_fails_is_one_line(tmp_path, monkeypatch):
    def refuse(self: Hub, **_: object) -> None:
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "upload_folder", refuse)
    with pytest.raises(UserError) as caught:
        push_to_hub(tmp_path, "me/mine", private=False, overwrite=False)
    assert str(caught.value) == "--push me/mine: 401 Client Error (hf auth login)"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'momentum-contrast\[hf\]'"):
        push_to_hub(tmp_path, "me/mine", private=False, overwrite=False)
