"""Minutes to accuracy: the time is kept right, each side steps, the page is written."""

import importlib
import itertools
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import minutes, peers
from bench.minutes import compile_seconds, points_of
from bench.minutes_page import compared, curve_of, reaches, table
from moco.encoders import build_encoder
from moco.evaluation import open_trained
from moco.runtime.errors import UserError


def fake_clock(seconds: float):
    """Each reading is `seconds` later."""
    readings = itertools.count(1)
    return lambda: next(readings) * seconds


def test_steps_end_in_time_and_the_cosine_with_them():
    shares, saved = [], []
    made = peers.train(lambda _, share: shares.append(share), itertools.count(), saved.append, 100.0, 4, fake_clock(3))
    assert made == 32  # the clock was read at 3 s before the first, at 99 s after the last
    assert shares[0] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.03)))
    assert shares[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.96)))
    assert saved == [0, 8, 16, 24, 32]  # at 27, 51, 75 and 99 s


def test_a_point_has_the_time_of_its_file(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step, at in ((0, 1007.5), (20, 1060.0)):
        path = tmp_path / f"checkpoints/step-{step:09d}.pt"
        path.touch()
        os.utime(path, (at, at))
    assert [(point.seconds, point.step) for point in points_of(tmp_path, 1000.0)] == [(7.5, 0), (60.0, 20)]
    path.unlink()
    with pytest.raises(UserError, match="left no checkpoints"):
        points_of(tmp_path, 1000.0)


def test_compilation_is_what_the_first_steps_take_longer(tmp_path):
    # 10 steps of 8 images in 40 s, then 90 of 0.5 s.
    rates = {10: 80 / 40, 100: 800 / 85}
    lines = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in rates.items()]
    (tmp_path / "timing.jsonl").write_text("\n".join(lines))
    assert compile_seconds(tmp_path, 8) == pytest.approx(35)


def test_split_batch_norm_is_bn_of_each_of_eight_groups():
    torch.manual_seed(0)
    images, plain = 3 * torch.randn(16, 5, 2, 2) + 1, nn.BatchNorm2d(5)
    split = peers.split_batch_norm(nn.Sequential(nn.BatchNorm2d(5)))
    out = split(images)
    for group in range(8):  # every eighth image, as both peers view the batch
        torch.testing.assert_close(out[group::8], plain(images[group::8]))
    assert split[0].running_mean.shape == (5,)


def test_a_batch_whose_keys_do_not_fill_the_notebook_s_queue_is_one_line(random_npz, tmp_path):
    words = f"colab --data npz:{random_npz(40, size=32)} --encoder tinyw0.25 --batch 24 --workers 0 --out {tmp_path}"
    with pytest.raises(SystemExit, match="--batch 24: the queue of 4096 is no multiple of its keys"):
        peers.main(words.split())


@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peer_takes_two_steps(peer, random_npz, tmp_path):
    pytest.importorskip("lightly")
    words = f"{peer} --data npz:{random_npz(40, size=32)} --encoder tinyw0.25 --batch 16 --workers 0 --out {tmp_path}"
    peers.main([*words.split(), "--minutes", "0.5"], clock=fake_clock(10))  # before, and after either step
    first, *_, last = points_of(tmp_path, 0)
    assert (first.step, last.step) == (0, 2)
    before, after = (open_trained(point.path, "tinyw0.25", 32).encoder.state_dict() for point in (first, last))
    assert before.keys() == build_encoder("tinyw0.25").state_dict().keys()
    assert not torch.equal(before["stem.0.weight"], after["stem.0.weight"])


def in_this_process(words: list[str], folder: Path) -> float:
    started = time.time()
    if words[0] == "moco":
        importlib.import_module("moco.cli.main").main(words[1:])
    else:
        peers.main(words[1:], clock=fake_clock(10))
    return started


@pytest.mark.slow
def test_the_table_and_the_figure_are_written_and_runs_are_not_made_again(random_npz, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightly")
    monkeypatch.setattr(minutes, "K", 10)
    words = f"--cifar npz:{random_npz(320, size=32, classes=2)} --per-class 128 --encoder tinyw0.25 --minutes 0.5"
    words += f" --seeds 1 --peer-batch 16 --workers 0 --points 2 --runs {tmp_path / 'runs'} --out {tmp_path / 'out'}"
    monkeypatch.setattr(minutes, "steps_that_fit", lambda options, run: (1.0, 14.5))
    minutes.main(words.split(), run=in_this_process)
    result = json.loads((tmp_path / "out.json").read_text())
    assert [run["side"] for run in result["runs"]] == [
        *("ours", "ours, a third of the time", "lightly, batch 16", "colab, batch 16")
    ]
    assert all(run["steps"] == 2 and run["points"][0]["step"] == 0 for run in result["runs"])
    assert all(0 <= point["knn"] <= 1 for run in result["runs"] for point in run["points"])
    page = (tmp_path / "out.md").read_text()
    assert page.count("| 1 |") == 4
    assert "lightly's final accuracy" in page
    assert (tmp_path / "out.png").stat().st_size > 1000
    minutes.main(words.split(), run=None)  # nothing is left to run
    assert page in capsys.readouterr().out


def test_a_trial_foretells_the_steps(tmp_path):
    options = minutes.argparse.Namespace(
        **{"recipe": "cifar10-cpu", "cifar": "npz:x", "per_class": 9, "encoder": "tiny", "small_stem": False},
        points=8,
        runs=tmp_path,
    )

    def run(words: list[str], folder: Path) -> float:
        (folder / "checkpoints").mkdir(parents=True)
        for step, at in ((0, 106), (30, 121)):
            path = folder / f"checkpoints/step-{step:09d}.pt"
            path.touch()
            os.utime(path, (at, at))
        return 100.0

    assert minutes.steps_that_fit(options, run) == (6.0, 0.5)
    words = minutes.our_words(options, 60, 4.0, 1, tmp_path)
    assert words[words.index("--checkpoint-minutes") + 1] == "0.5000"


def made_up(side: str, kind: str, values: list[float], end: float, seed: int = 0) -> dict:
    points = [{"minutes": end * i / (len(values) - 1), "step": i, "knn": v} for i, v in enumerate(values)]
    about = {"side": side, "kind": kind, "seed": seed, "start_seconds": 3.0, "compile_seconds": 1.0, "steps": 9}
    return {**about, "points": points}


def test_ours_is_compared_with_the_better_batch_of_a_peer():
    runs = [made_up("ours", "ours", [0.1, 0.3, 0.5], 4.0), made_up("ours, a third", "ours", [0.1, 0.4], 1.0)]
    runs += [
        made_up("lightly, batch 8", "lightly", [0.1, 0.4], 4.0),
        made_up("lightly, batch 9", "lightly", [0, 0.2], 4),
    ]
    runs += [made_up("colab, batch 8", "colab", [0.1, 0.9], 4.0)]
    lightly, colab = compared(runs)
    assert "in 0.25 of its minutes (1.00, ours, a third)" in lightly
    assert "40.0 %, lightly, batch 8" in lightly
    assert colab.startswith("Ours does not reach colab's final accuracy (90.0 %")
    assert "| ours | 1 | 4.0 | 1.0 | 9 | 20.0 | 30.0 | 40.0 | **50.0** | 4.00 |" in table(runs, 4.0)


def test_a_curve_is_the_mean_over_the_seeds():
    curve = curve_of([made_up("a", "ours", [0.0, 0.4], 4.0), made_up("a", "ours", [0.2, 0.6], 4.0, seed=1)])
    assert curve.at(2.0) == "30.0 ± 14.1"
    assert curve.at(4.5) == ""
    assert reaches(curve, 0.4) == pytest.approx(3.0)
    assert reaches(curve, 0.7) is None
