"""Several ranks are one rank, also when a run is continued on another number of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.encoders import build_encoder, save_encoder
from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runs.folder import Run
from tests.launch import launch
from tests.ranks import Rank, run_ranks
from tests.training.test_resume import assert_same

OPTIONS = (
    "--encoder tinyw0.25 --image-size 16 --precision fp32 --device cpu --batch-size 32 --bn-group 16 --queue-size 80 "
    "--epochs 2 --log-every 1 --knn-every 1 --knn-k 5 --seed 3 --workers 0"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, random_npz) -> Path:
    """Where the data and all runs are: a run that several tests compare with is trained once."""
    folder = tmp_path_factory.mktemp("ranks")
    for split, number in (("train", 96), ("test", 50)):
        random_npz(number, path=folder / f"{split}.npz")
    return folder


def moco(ranks: int, words: str, folder: Path, sabotage: str = "") -> list[Rank]:
    ended = run_ranks(ranks, words, [folder], sabotage)
    assert {rank.code for rank in ended} == {143 if sabotage else 0}, ended
    return ended


def pretrain(ranks: int, data: Path, out: str, more: str = "", sabotage: str = "") -> tuple[list[dict], dict]:
    if not (data / out).exists():
        moco(ranks, f"pretrain cifar10-cpu --data npz:{data} {OPTIONS} --out {out} {more}", data, sabotage)
    return recorded(data / out)


def recorded(path: Path) -> tuple[list[dict], dict]:
    newest = newest_checkpoint(Run(path))
    assert newest is not None
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()], read_checkpoint(newest)


def assert_close(one: tuple[list[dict], dict], two: tuple[list[dict], dict], exact: int = 2) -> None:
    """The first `exact` losses; later ones drift apart as rounding in another order does."""
    (lines, state), (other_lines, other_state) = one, two
    assert [line["step"] for line in lines] == [line["step"] for line in other_lines]
    for mine, theirs in zip(lines, other_lines, strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5 if mine["step"] <= exact else 1e-2)
            assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4 if mine["step"] == 1 else 1)
    assert state["step"] == other_state["step"]
    for name, value in state["mechanism"].items():
        assert torch.allclose(value.float(), other_state["mechanism"][name].float(), atol=2e-2), name


def test_two_ranks_are_one(data):
    one, two = pretrain(1, data, "one"), pretrain(2, data, "two")
    assert_close(one, two)
    assert one[1]["step"] == 6
    for name in ("uniformity", "rank", "feature_std", "queue_real", "key_drift", "same_image"):
        assert one[0][-1][name] == pytest.approx(two[0][-1][name], rel=0.05), name
    # What one rank evaluated in training, two ranks do.
    moco(2, "knn one --k 5 --precision fp32 --device cpu", data)
    evaluated = json.loads((data / "one" / "knn.json").read_text())["accuracy"]["top-1"]
    assert evaluated == next(line["knn"] for line in reversed(one[0]) if "knn" in line)
    moco(2, "linear two --epochs 2 --batch-size 32 --lr 1 --device cpu", data)
    assert 0 <= json.loads((data / "two" / "linear.json").read_text())["accuracy"]["top-1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "--accumulation-steps 2 --bn-group 8 --knn-every 0",
        # BN is synchronised, so that each rank's 16 images are normalised as one rank's 32 are.
        "--mechanism moco-v3 --hidden 32 --lr 0.01 --knn-every 0",
    ],
)
def test_two_ranks_of_other_steps_are_one(data, more):
    name = more.split()[1]
    assert_close(pretrain(1, data, f"one-{name}", more), pretrain(2, data, f"two-{name}", more))


@pytest.mark.slow
def test_torchrun_starts_ranks(data):
    launch(2, "-m", "moco", *f"pretrain cifar10-cpu --data npz:{data} {OPTIONS} --out {data / 'torchrun'}".split())
    assert recorded(data / "torchrun")[1]["step"] == 6


def test_what_is_wrong_with_the_options_is_printed_once(data):
    """By the main rank, as all raise it."""
    for more, line in (
        (
            "--bn-group 32",
            "moco: --batch-size 32: a rank's micro-batch of 16 images is not a multiple",
        ),
        ("--accumulation-steps 2 --mechanism end-to-end --bn-group 8", "moco: --accumulation-steps 2: --mechanism end"),
    ):
        words = f"pretrain cifar10-cpu --data npz:{data} {OPTIONS} --out refused {more}"
        ranks = run_ranks(2, words, [data])
        assert [rank.code for rank in ranks] == [2, 2]
        assert ranks[0].err.startswith(line)
        assert ranks[0].err.count("\n") == 1
        assert ranks[1].err == ""
        assert not (data / "refused").exists()


def as_files(arrays: Path, folder: Path) -> None:
    """The images of an npz file as PNGs in a new folder."""
    folder.mkdir()
    with np.load(arrays) as content:
        for i, pixels in enumerate(content["images"]):
            Image.fromarray(pixels).save(folder / f"{i:02}.png")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_to_a_rank_and_its_workers_stops_the_run(tmp_path, random_npz, ranks):
    as_files(random_npz(96), tmp_path / "images")
    words = (
        f"pretrain cifar10-cpu --data folder:{tmp_path}/images {OPTIONS} --epochs 40 --out run --cache-mb 0 --workers 1"
    )
    ended = run_ranks(ranks, words, [tmp_path], "group_stopped")
    assert {rank.code for rank in ended} == {143}, ended
    assert recorded(tmp_path / "run")[1]["step"] >= 4


def test_unreadable_images_are_counted_over_all_ranks(tmp_path, random_npz):
    """Either rank's are under --max-bad, both ranks' together over it."""
    as_files(random_npz(96), tmp_path / "images")
    for i in range(24, 96, 8):  # 9 of 96
        (tmp_path / "images" / f"{i}.png").write_bytes(b"damaged")
    words = f"pretrain cifar10-cpu --data folder:{tmp_path}/images {OPTIONS} --epochs 1 --out run --cache-mb 0"
    ranks = run_ranks(2, words + " --log-every 3 --max-bad 0.08", [tmp_path])
    assert [rank.code for rank in ranks] == [2, 2], ranks
    (line,) = [line for rank in ranks for line in rank.err.splitlines() if line.startswith("moco:")]
    assert line.startswith("moco: 9 of 96 images cannot be read, more than --max-bad 0.08")
    assert recorded(tmp_path / "run")[1]["step"] == 3  # saved as far as it came
    words = words.replace("--out run", "--out another")
    assert {rank.code for rank in run_ranks(2, words + " --max-bad 0.1", [tmp_path])} == {0}


def test_ranks_that_find_other_images_are_refused(data, tmp_path_factory, random_npz):
    other = tmp_path_factory.mktemp("other")
    random_npz(95, path=other / "train.npz")
    random_npz(50, path=other / "test.npz")
    words = f"pretrain cifar10-cpu --data npz:. {OPTIONS} --out {data / 'others'}"
    ranks = run_ranks(2, words, [data, other])
    assert [rank.code for rank in ranks] == [2, 2]
    assert "different numbers of training images: 96 on rank 0, 95 on rank 1" in ranks[0].err


def test_a_signal_to_one_rank_stops_all_and_the_run_is_continued_bit_for_bit(data, tmp_path_factory):
    """With dropout, which each rank draws for itself.

    On a file system of its own rank 1 has neither the run's folder nor its checkpoints, and needs none.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    words = f"pretrain cifar10-cpu --data npz:{data} {OPTIONS} --knn-every 0 --out"
    whole = run_ranks(2, f"{words} dropping", [data, elsewhere], "dropout")
    stopped = run_ranks(2, f"{words} stopped --resume auto", [data, elsewhere], "stopped dropout")
    assert [rank.code for rank in whole + stopped] == [0, 0, 143, 143], (whole, stopped)
    assert recorded(data / "stopped")[1]["step"] == 4
    assert stopped[0].out.startswith("stopped after step 4; continue it by:")
    continued = run_ranks(2, f"{words} stopped --resume auto", [data, elsewhere], "dropout")
    assert [rank.code for rank in continued] == [0, 0], continued
    (lines, state), (other_lines, other_state) = recorded(data / "dropping"), recorded(data / "stopped")
    assert_same(state, other_state)
    assert lines == other_lines
    first, second = (rank["generators"]["cpu"] for rank in state["ranks"])
    assert not torch.equal(first, second)
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2)])
def test_a_run_is_continued_on_another_number_of_ranks(data, before, after):
    more = "--batch-size 24 --bn-group 4 --knn-every 0"
    whole = pretrain(1, data, "groups-of-4", more)
    out = f"on-{before}-then-{after}"
    stopped = pretrain(before, data, out, more, "stopped_all")
    assert stopped[1]["step"] == 4
    moco(after, f"pretrain cifar10-cpu --out {out} --resume", data)
    assert_close(whole, recorded(data / out))


def test_all_ranks_start_with_the_main_ranks_state(data):
    (_, plain) = pretrain(2, data, "two")
    words = f"pretrain cifar10-cpu --data npz:{data} {OPTIONS} --out other-weights"
    ended = run_ranks(2, words, [data], "other_weights")
    assert {rank.code for rank in ended} == {0}, ended
    assert_same(plain, recorded(data / "other-weights")[1])


@pytest.mark.slow
def test_two_ranks_start_from_given_weights_as_one_does(data):
    torch.manual_seed(1)
    encoder = build_encoder("tinyw0.25")
    encoder(torch.randn(8, 3, 16, 16))  # moves BN's statistics
    save_encoder(encoder, data / "given.safetensors")
    more = "--init given.safetensors --knn-every 0"
    one, two = pretrain(1, data, "one-given", more), pretrain(2, data, "two-given", more)
    assert_close(one, two)
    assert abs(one[0][1]["loss"] - pretrain(1, data, "one")[0][2]["loss"]) > 1e-3  # of random weights
    for out in ("one-given", "two-given"):
        assert (data / out / "log.txt").read_text().count("starting from given.safetensors: ") == 1


@pytest.mark.slow
def test_three_ranks_continue_bit_for_bit(data):
    """Of three numbers the sum depends on the order, and so on where in a bucket a gradient lies.

    The mean of three equal numbers may be another number: so metrics that are still pending are stored by rank.
    """
    more = "--batch-size 24 --bn-group 4 --knn-every 0 --log-every 8"
    lines, whole = pretrain(3, data, "three", more)
    pretrain(3, data, "three-stopped", more, "stopped_all")
    moco(3, "pretrain cifar10-cpu --out three-stopped --resume", data)
    other_lines, other = recorded(data / "three-stopped")
    assert_same(whole, other)
    assert lines == other_lines
