"""The command line: help, a line for every mistake, and one small journey through its commands."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from moco.cli import COMMANDS, main
from moco.recipes import RECIPES


@pytest.fixture(scope="session")
def npz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    generator = np.random.default_rng(0)
    np.savez(path, images=generator.integers(0, 256, (96, 16, 16, 3), dtype=np.uint8), labels=np.arange(96) % 3)
    return path


@pytest.fixture
def small(npz) -> str:
    """Options of a run that takes a second."""
    return (
        f"--data npz:{npz} --encoder tiny --image-size 16 --dim 16 --queue-size 48 --batch-size 16 --bn-group 8 "
        "--epochs 2 --warmup-epochs 0 --knn-k 5 --knn-every 1 --log-every 2 --device cpu --precision fp32"
    )


def refused(capsys, line: str) -> str:
    """What is said of a command line that ends with exit code 2: one line."""
    with pytest.raises(SystemExit) as left:
        main(shlex.split(line))
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("moco: ")
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("moco: ").strip()


@pytest.mark.parametrize("line", ["", "-h", "--help", "help"])
def test_the_overview_names_the_commands(capsys, line):
    main(line.split())
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)


def test_version(capsys):
    main(["--version"])
    assert re.fullmatch(r"moco \d+\.\d+.*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("pretrain shapes-cpu --help", ["--queue-size", "--temperature", "--resume", "--out", "(default: 4096)"]),
        ("knn --help", ["--k", "--random", "--temperature"]),
        ("linear --help", ["--cached", "--lr", "(default: 30.0)"]),
        ("demo --help", ["--out"]),
    ],
)
def test_help_names_the_options(capsys, line, options):
    with pytest.raises(SystemExit) as left:
        main(line.split())
    assert not left.value.code
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(option in out for option in options)


@pytest.mark.parametrize("line", ["recipes", "pretrain", "pretrain --help"])
def test_recipes_are_listed(capsys, line):
    main(line.split())
    out = capsys.readouterr().out
    assert all(name in out for name in RECIPES)


def test_a_recipe_is_shown_whole(capsys):
    main(["recipes", "cifar10-r18"])
    out = capsys.readouterr().out
    for text in ("moco pretrain cifar10-r18", "queue_size: 4096", "temperature: 0.1", "epochs: 200", "lr: 0.06"):
        assert text in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretran shapes-cpu", "no command 'pretran': did you mean pretrain?"),
        ("xyz", "no command 'xyz': there are demo, pretrain, knn, linear, recipes"),
        ("pretrain shapes-gpu", "no recipe named 'shapes-gpu': did you mean shapes-cpu?"),
        ("recipes cifar10-r81", "no recipe named 'cifar10-r81': did you mean cifar10-r18?"),
        ("pretrain --epochs 3", "the recipe comes first"),
        ("pretrain shapes-cpu --epoch 3", "no option --epoch: did you mean --epochs?"),
        ("pretrain shapes-cpu --que-size=3", "no option --que-size: did you mean --queue-size?"),
        ("pretrain shapes-cpu more", "do not know what to do with 'more'"),
        ("knn somewhere --rando", "no option --rando: did you mean --random?"),
        ("linear somewhere --cache", "no option --cache: did you mean --cached?"),
        ("demo --ou x", "no option --ou: did you mean --out?"),
    ],
)
def test_what_is_unknown_names_the_nearest(capsys, line, said):
    assert said in refused(capsys, line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--queue-size 0", "--queue-size 0: at least 1"),
        ("--batch-size 1", "--batch-size 1: at least 2"),
        ("--dim 0", "--dim 0: at least 1"),
        ("--temperature 0", "--temperature 0.0: above 0"),
        ("--temperature nan", "--temperature nan: above 0"),
        ("--momentum 1.5", "--momentum 1.5: in 0..1"),
        ("--momentum -0.1", "--momentum -0.1: in 0..1"),
        ("--seed 99999999999999999999", "--seed 99999999999999999999: in 0..2^63 - 1"),
        ("--batch-size 20", "--batch-size 20: 20 images go through the encoder at once, which does not divide into BN"),
        ("--accumulate 3", "--batch-size 16 does not divide into 1 rank(s) x 3 part(s)"),
        ("--views none", "no views named 'none': there are v1, v2, cifar"),
        ("--encoder resnet19", "resnet19"),
        ("--device gpu", "--device gpu: no such device: auto, cpu, cuda or cuda:N"),
        ("--device cuda:99", "--device cuda:99: this machine has "),
        ("--data npz:nowhere.npz", "--data npz:nowhere.npz: no such path: nowhere.npz"),
        ("--data cifar10:nowhere", "--data cifar10:nowhere: no such path: nowhere (--data.download fetches it)"),
        ("--data folder:empty", "empty: no images here"),
        ("--data foldr:empty", "no such source: did you mean folder?"),
        ("--resume", "run: no such path"),
        ("--resume --out empty", "empty: no such run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys, small, line, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert said in refused(capsys, f"pretrain shapes-cpu {small} --out run {line}")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("value", ["--epochs abc", "--lr", "--head conv", "--precision fp8"])
def test_a_value_of_another_type_ends_with_2_and_names_the_option(capsys, value):
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "shapes-cpu", *value.split()])
    assert left.value.code == 2
    assert value.split()[0] in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused_and_untouched(tmp_path, capsys, small):
    (tmp_path / "config.yaml").write_text("recipe: mine\n")
    said = refused(capsys, f"pretrain shapes-cpu {small} --out {tmp_path}")
    assert said == f"{tmp_path} already holds a run: --resume continues it, --out starts another elsewhere"
    assert (tmp_path / "config.yaml").read_text() == "recipe: mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_what_cannot_be_judged(tmp_path, capsys, command):
    assert "no such path" in refused(capsys, f"{command} {tmp_path}/none --device cpu")
    assert "no such run" in refused(capsys, f"{command} {tmp_path} --device cpu")
    (tmp_path / "notes.pt").write_text("not weights")
    assert str(tmp_path / "notes.pt") in refused(capsys, f"{command} {tmp_path}/notes.pt --device cpu")


def test_a_whole_journey(tmp_path, capsys, small, npz):
    run = tmp_path / "run"
    main(shlex.split(f"pretrain shapes-cpu {small} --out {run}"))
    assert "done: " in capsys.readouterr().out
    for name in ("config.yaml", "metrics.jsonl", "timing.jsonl", "log.txt"):
        assert (run / name).is_file()
    for name in ("views.png", "curves.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000010.pt"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "loss" in line] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in metrics if "knn" in line] == [0, 5, 10]

    main(shlex.split(f"knn {run} --device cpu --precision fp32 --random"))
    judged = json.loads((run / "knn.json").read_text())
    assert judged["accuracy"]["top-1"] == metrics[-1]["knn"]  # the monitor's own number
    assert judged["accuracy"]["random weights"] == metrics[0]["knn"]
    assert (judged["k"], judged["temperature"], judged["published"]) == (5, 0.1, None)
    assert judged["weights"].endswith("step-000000010.pt")

    main(shlex.split(f"linear {run} --cached --epochs 2 --batch-size 16 --lr 1 --device cpu"))
    judged = json.loads((run / "linear.json").read_text())
    assert 0 <= judged["accuracy"]["top-1"] <= 1
    assert (judged["epochs"], judged["cached"], judged["data"]) == (2, True, f"npz:{npz}")
    capsys.readouterr()

    for line, said in (
        ("knn {} --k 0", "--k 0: at least 1"),
        ("knn {} --temperature 0", "--temperature 0.0: above 0"),
        ("knn {} --image-size 0", "--image-size 0: at least 1"),
        ("linear {} --image-size 0", "--image-size 0: at least 1"),
        ("linear {} --epochs 0", "--epochs 0: at least 1"),
        ("linear {} --batch-size 200", "--batch-size 200: the data set has only 87 training images"),
        ("knn {} --encoder resnet18", "does not fit the encoder: missing: conv1.weight"),
    ):
        assert said in refused(capsys, f"{line.format(run)} --device cpu")


def test_more_in_a_batch_than_images(tmp_path, capsys, small):
    said = refused(capsys, f"pretrain shapes-cpu {small} --batch-size 88 --out {tmp_path / 'run'}")
    assert said == "--batch-size 88: the data set has only 87 training images"
