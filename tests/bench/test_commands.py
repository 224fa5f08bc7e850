"""Every module of the bench can be imported, and the small ones run."""

import importlib
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py") if path.stem != "__init__"))
def test_it_can_be_imported(name):
    importlib.import_module(f"bench.{name}")


@pytest.mark.parametrize(
    "name",
    [
        *("count", "gpu", "gpu_profile", "minutes", "monitor", "peers", "records.__main__"),
        *("scale", "shuffle_bn", "small_scale", "weights", "__main__"),
    ],
)
def test_it_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{name}").main(["--help"])
    assert ended.value.code == 0
    assert "python -m bench" in capsys.readouterr().out


def run(name: str, words: str) -> None:
    importlib.import_module(f"bench.{name}").main(words.split())


def test_count(capsys):
    run("count", "--encoder tinyw0.25 --size 32 --batch 8 --queue 64 --bn-group 4")
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["small", "large"])
def test_gpu_profile(what, capsys):
    run("gpu_profile", f"{what} --quick")
    printed = capsys.readouterr().out
    assert "with views" in printed or "the released code's" in printed
    assert "recorded" in printed


def test_monitor(random_npz, capsys):
    run("monitor", f"shapes-cpu --data npz:{random_npz(300, size=32)} --steps 2")
    assert "a measurement" in capsys.readouterr().out


def test_shuffle_bn(tmp_path):
    run("shuffle_bn", f"--batch 32 --size 8 --repeats 1 --out {tmp_path / 'out.json'}")
    assert json.loads((tmp_path / "out.json").read_text())["ratio"] > 0


def test_scale(tmp_path):
    words = "--images 200000 --per-shard 1000 --ranks 4 --batch 32 --shard-streams 16 --steps 10"
    run("scale", f"{words} --out {tmp_path / 'out.json'}")
    assert json.loads((tmp_path / "out.json").read_text())["shards"] == 200
