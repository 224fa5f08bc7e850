"""The weights that come along are those of moco/weights/README.md, and their commands still begin as they did."""

import hashlib
import json
import os
import shlex
import shutil

import pytest
import torch

import moco
from bench import weights
from moco.cli.main import main
from moco.encoders.included import FOLDER, INCLUDED
from moco.runs.config import Config
from tests.report.tiny_runs import train

ROWS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
CIFAR10 = os.environ.get("MOCO_CIFAR10")


def test_every_file_has_a_name_and_a_row():
    assert "shapes-cpu" in ROWS
    assert set(ROWS) == {path.stem for path in FOLDER.glob("*.safetensors")} <= set(INCLUDED)
    ordered = {name: ROWS[name] for name in INCLUDED if name in ROWS}
    assert weights.table(ordered) in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", ROWS)
def test_a_file_is_the_one_that_was_measured(name):
    content = (FOLDER / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == ROWS[name]["sha256"]
    assert len(content) == ROWS[name]["bytes"] <= weights.LARGEST
    assert ROWS[name]["largest_difference"] < 0.01


@pytest.mark.parametrize("name", ROWS)
def test_a_command_begins_as_it_did(name, monkeypatch):
    """Within what processors may round differently; a step with other images, views or weights differs by more."""
    command = ROWS[name]["command"]
    if "npz:PATH" in command and not CIFAR10:
        pytest.skip("MOCO_CIFAR10=npz:PATH names no images")
    losses = weights.first_losses(parsed(command.replace("npz:PATH", CIFAR10 or ""), monkeypatch))
    assert losses == pytest.approx(ROWS[name]["losses"], rel=1e-3)


def parsed(command: str, monkeypatch) -> Config:
    """The configuration that a command trains."""
    configs: list[Config] = []
    monkeypatch.setattr("moco.cli.commands.pretrain.pretrain", lambda config, *_: configs.append(config))
    main(shlex.split(command)[1:])
    return configs[0]


def test_a_run_becomes_weights(tmp_path, random_npz, capsys):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        random_npz(96, path=tmp_path / "data" / f"{split}.npz")
    run = train(f"npz:{tmp_path / 'data'}", tmp_path / "run")
    shutil.copy(FOLDER / "README.md", tmp_path)
    weights.main([str(run), "--out", str(tmp_path)])
    row = json.loads((tmp_path / "cifar10-cpu.json").read_text())
    assert "--data npz:PATH" in row["command"]
    assert str(tmp_path) not in json.dumps(row)
    assert 0 < row["largest_difference"] < 0.01
    assert 0 <= row["knn"] <= 1
    assert len(row["losses"]) == 3
    page = (tmp_path / "README.md").read_text()
    assert row["sha256"] in page
    assert "shapes-cpu.safetensors" not in page  # of this folder's files alone
    images = torch.randn(2, 3, 16, 16)
    exact, halved = (moco.load_encoder(path)[0](images) for path in (run, tmp_path / "cifar10-cpu.safetensors"))
    assert 0 < (exact - halved).abs().max() < 0.01 * exact.abs().max()
