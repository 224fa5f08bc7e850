"""Several ranks are one rank: the whole program under torchrun, with gloo."""

import json
from pathlib import Path

import pytest
import torch

from tests.launch import launch

OPTIONS = (
    "--encoder tiny --batch-size 32 --bn-group 16 --queue-size 80 --epochs 2 --log-every 1 --knn-every 1 --knn-k 5"
)


@pytest.fixture
def data(tmp_path: Path, random_npz) -> Path:
    for split, number in (("train", 96), ("test", 50)):
        random_npz(number, path=tmp_path / f"{split}.npz")
    return tmp_path


def moco(ranks: int, words: str) -> str:
    """Runs a command on so many ranks, one being an ordinary process; what it printed."""
    return launch(ranks if ranks > 1 else 0, "-m", "moco", *words.split())


def pretrain(ranks: int, data: Path, out: str, more: str = "") -> tuple[list[dict], dict]:
    words = f"pretrain cifar10-cpu --data npz:{data} --image-size 16 --precision fp32 --seed 3 {OPTIONS}"
    moco(ranks, f"{words} --out {data / out} {more}")
    lines = [json.loads(line) for line in (data / out / "metrics.jsonl").read_text().splitlines()]
    newest = sorted((data / out / "checkpoints").glob("*.pt"))[-1]
    return lines, torch.load(newest, weights_only=True)


def test_two_ranks_are_one(data):
    (one, state1), (two, state2) = pretrain(1, data, "one"), pretrain(2, data, "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, theirs in zip(one, two, strict=True):
        if "loss" in mine:
            # The first steps; later ones drift apart as rounding in another order does.
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5 if mine["step"] <= 2 else 1e-2)
    assert state1["step"] == state2["step"] == 6
    for name, value in state1["mechanism"].items():
        assert torch.allclose(value.float(), state2["mechanism"][name].float(), atol=2e-2), name
    # What one rank evaluated to, two ranks do.
    moco(2, f"knn {data / 'one'} --k 5 --precision fp32")
    evaluated = json.loads((data / "one" / "knn.json").read_text())["accuracy"]["top-1"]
    assert evaluated == next(line["knn"] for line in reversed(one) if "knn" in line)
    for name in ("uniformity", "rank", "feature_std", "queue_real", "key_drift", "same_image"):
        assert one[-1][name] == pytest.approx(two[-1][name], rel=0.05), name
    moco(2, f"linear {data / 'two'} --epochs 2 --batch-size 32 --lr 1")
    assert 0 <= json.loads((data / "two" / "linear.json").read_text())["accuracy"]["top-1"] <= 1


def test_two_ranks_of_moco_v3_are_one(data):
    """BN is synchronised, so that each rank's 16 images are normalised as one rank's 32 are."""
    more = "--mechanism moco-v3 --hidden 32 --lr 0.01 --knn-every 0"
    (one, state1), (two, state2) = pretrain(1, data, "one", more), pretrain(2, data, "two", more)
    losses = ([line for line in lines if "loss" in line] for lines in (one, two))
    for mine, theirs in zip(*losses, strict=True):
        # As above: what rounding in another order does grows from step to step.
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5 if mine["step"] <= 3 else 1e-2)
    for name, value in state1["mechanism"].items():
        assert torch.allclose(value.float(), state2["mechanism"][name].float(), atol=1e-2), name
