"""moco export: what it writes, where, and what it refuses."""

import errno
import json
from pathlib import Path

import pytest
import torch

import moco
from moco.cli.main import main
from moco.encoders import Description, build_encoder
from moco.encoders.files import as_safetensors
from tests.report.tiny_runs import train


@pytest.fixture(scope="module")
def run(made_once, random_npz) -> Path:
    return made_once("exported", lambda folder: train(f"npz:{random_npz(96)}", folder / "mine") and None) / "mine"


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(as_safetensors(build_encoder("tiny").state_dict(), Description("tiny", image_size=16)))
    return path


def refusal(capsys, words: list[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(["export", *words])
    assert left.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("moco: ")
    return line.removeprefix("moco: ")


def test_a_run_as_a_hub_s_folder(run, tmp_path, capsys):
    (run / "knn.json").write_text(json.dumps({"protocol": "knn", "accuracy": {"top-1": 0.4321}}))
    out = tmp_path / "new" / "hub"
    main(["export", str(run), "--to", "hub", "--out", str(out), "--license", "cc-by-nc-4.0"])
    assert f"encoder, preprocess = moco.load_encoder('{out}')" in capsys.readouterr().out
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(moco.load_encoder(out)[0](images), moco.load_encoder(run)[0](images))
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    assert "| knn, top-1 | 43.2 |" in card
    assert "moco pretrain cifar10-cpu" in card
    assert 'moco.load_encoder("hf:OWNER/mine")' in card
    assert "npz:images.npz" in card
    assert str(tmp_path.parent) not in card  # no folder of this machine
    assert "timm" not in card


def test_it_lies_in_the_run_and_is_never_overwritten(run, capsys):
    main(["export", str(run), "--to", "safetensors"])
    written = run / "mine.safetensors"
    assert "written to" in capsys.readouterr().out
    written.write_bytes(b"other")
    line = refusal(capsys, [str(run), "--to", "safetensors"])
    assert line == f"{written} exists already: --overwrite replaces it, --out writes another"
    assert written.read_bytes() == b"other"
    main(["export", str(run), "--to", "safetensors", "--overwrite"])
    assert moco.load_encoder(written)[1].size == 16
    capsys.readouterr()


def test_a_config_beside_it_is_not_overwritten_either(weights, tmp_path, capsys):
    (tmp_path / "out.yaml").write_text("mine")
    line = refusal(capsys, [str(weights), "--to", "detectron2", "--out", str(tmp_path / "out.pth")])
    assert line.startswith(f"{tmp_path}/out.yaml exists already")


def test_bad_input_is_one_line(weights, tmp_path, capsys):
    def error(*words: str) -> str:
        return refusal(capsys, [str(weights), *words])

    line = error("--to", "timm", "--encoder", "resnet18")
    assert "does not fit the encoder: missing: conv1.weight, bn1.weight" in line
    assert "another architecture: they are of tiny" in line
    assert error("--to", "timm", "--push", "me/mine") == "--push: goes with --to hub"
    assert error("--to", "hub", "--push", "mine") == "--push mine: give OWNER/NAME"
    assert "what onnx reads is a .onnx" in error("--to", "onnx", "--out", str(tmp_path / "out.pt"))
    assert "no such folder" in error("--to", "onnx", "--out", str(tmp_path / "none/out.onnx"))
    assert "is a file" in error("--to", "hub", "--out", str(weights))
    assert "--to" in error("--to", "tensorflow")
    assert "no such path" in refusal(capsys, [str(tmp_path / "absent"), "--to", "onnx"])
    assert {path.name for path in tmp_path.iterdir()} == {"weights.safetensors"}


def test_a_read_only_folder(weights, tmp_path, capsys, monkeypatch):
    real = Path.open

    def refuse(path: Path, mode: str = "r", *rest: object, **more: object):
        if "w" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    line = refusal(capsys, [str(weights), "--to", "safetensors", "--out", str(tmp_path / "out.safetensors")])
    assert line == f"{tmp_path}/out.safetensors cannot be written: Permission denied"


def test_a_pushed_folder(weights, tmp_path, monkeypatch, capsys):
    pushed = []

    def push(folder: Path, *more: object) -> str:
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
        pushed.append(more)
        return "https://there"

    monkeypatch.setattr("moco.cli.commands.export.push_to_hub", push)
    main(["export", str(weights), "--to", "hub", "--out", str(tmp_path / "hub"), "--push", "me/mine", "--private"])
    assert pushed == [("me/mine", True, False)]
    assert "uploaded to https://there" in capsys.readouterr().out
    assert "The weights come from weights.safetensors." in (tmp_path / "hub/README.md").read_text()
