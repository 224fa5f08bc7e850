"""A grid of tiny runs: what is missing is run, nothing twice, and a page is left."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moco.cli import main as cli
from moco.reproduce import EXPERIMENTS, plan
from moco.reproduce.experiment import Cell, Claim
from moco.runs.config import Compute
from moco.runs.folder import Run
from moco.runs.options import with_options


def changed(cells: list[Cell], changes: dict) -> list[Cell]:
    return [replace(cell, config=with_options(cell.config, **changes)) for cell in cells]


@pytest.fixture(scope="module")
def npz(random_npz) -> Path:
    return random_npz(80, classes=2)


@pytest.fixture
def tiny(monkeypatch):
    """The momentum experiment with two settings that take a second."""
    options = {
        "encoder": "tinyw0.25",
        "image_size": 16,
        "dim": 8,
        "queue_size": 32,
        "batch_size": 16,
        "bn_group": 8,
        "epochs": 2,
        "knn_k": 5,
    }
    whole = EXPERIMENTS["momentum"]
    cells = [
        replace(cell, config=with_options(cell.config, **options, warmup=0, log_every=1, knn_every=1, precision="fp32"))
        for cell in whole.cells("cpu")[:2]
    ]
    claims = [Claim("0.9 is above 0", ("MoCo", 0.9), ("MoCo", 0.0))]
    experiment = replace(
        whole, grid=lambda scale, changes: changed(cells, changes), claims=lambda scale: claims, seeds=2
    )
    monkeypatch.setitem(EXPERIMENTS, "momentum", experiment)
    return experiment


def reproduce(npz: Path, out: Path, *more: str) -> None:
    cli.main(["reproduce", "momentum", "--data", f"npz:{npz}", "--out", str(out), "--device", "cpu", *more])


def test_a_grid_is_run_once_and_has_a_page(tiny, npz, tmp_path, capsys):
    reproduce(npz, tmp_path, "--set", "per_class=24")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert {path.parent.name for path in written} == {f"moco-{m}-seed{seed}" for m in ("0.0", "0.9") for seed in (0, 1)}
    for path in written:
        result = json.loads(path.read_text())
        assert {"knn", "linear", "contrastive"} <= set(result)
    page = (tmp_path / "momentum-cpu,per_class=24.md").read_text()
    assert "| MoCo | 0.9 |" in page
    assert "55.2" in page
    assert "0.9 is above 0" in page
    everything = json.loads((tmp_path / "momentum-cpu,per_class=24.json").read_text())
    assert len(everything["results"]) == 4
    assert everything["command"].split()[0] == "moco"
    assert (tmp_path / "momentum-cpu,per_class=24.png").read_bytes().startswith(b"\x89PNG")

    # Again: nothing is run, a missing result is evaluated anew, a third seed is added.
    first = next(iter(written))
    first.unlink()
    reproduce(npz, tmp_path, "--set", "per_class=24", "--seeds", "3")
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(again) == 6
    assert all(again[path] == when for path, when in written.items() if path != first)


@pytest.mark.slow
def test_it_stops_when_the_time_is_up_and_goes_on(tiny, npz, tmp_path):
    with pytest.raises(SystemExit) as left:
        reproduce(npz, tmp_path, "--minutes", "0", "--seeds", "1")
    assert left.value.code == 128 + 15
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert list((run / "checkpoints").iterdir())
    assert not list(tmp_path.glob("*/result.json"))
    assert "0 of 2 runs" in (tmp_path / "momentum-cpu.md").read_text()
    reproduce(npz, tmp_path, "--seeds", "1")
    assert len(list(tmp_path.glob("*/result.json"))) == 2
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()].count(1) == 1


def test_other_options_are_refused(tiny, npz, tmp_path, capsys):
    reproduce(npz, tmp_path, "--seeds", "1")
    with pytest.raises(SystemExit) as left:
        reproduce(npz, tmp_path, "--seeds", "1", "--set", "epochs=3")
    assert left.value.code == 2
    assert "epochs 2 -> 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_grid_is_run_at_several_values_of_an_option(tiny, npz, tmp_path):
    vary = ("--vary", "epochs=1,2", "--set", "per_class=24", "--only", "0.9", "0", "--seeds", "2")
    reproduce(npz, tmp_path, *vary)
    results = {path.relative_to(tmp_path).parts[0] for path in tmp_path.glob("*/*/result.json")}
    assert results == {"epochs=1", "epochs=2"}
    page = (tmp_path / "momentum-cpu,per_class=24,vary-epochs,only=0.9,0.md").read_text()
    assert "| finding of the paper | epochs 1 | epochs 2 |" in page
    assert page.count("| MoCo | 0.9 |") == 2
    assert "8 of 8 runs" in page
    everything = json.loads((tmp_path / "momentum-cpu,per_class=24,vary-epochs,only=0.9,0.json").read_text())
    assert {value: len(runs) for value, runs in everything["results"].items()} == {"1": 4, "2": 4}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "epoch=3"], "did you mean epochs"),
        (["--set", "epochs"], "NAME=VALUE"),
        (["--set", "epochs=many"], "is not of type int"),
        (["--vary", "bn_group=8,"], "NAME=VALUE"),
        (["--vary", "epochs=0,1"], "--epochs 0: at least 1"),
        (["--only", "0.5"], "no such setting; there are MoCo 0, MoCo 0.9"),
        (["--seeds", "0"], "--seeds 0: at least 1"),
        (["--set", "key_momentum=0.5"], "settings of momentum would be the same"),
        (["--set", "seed=1"], "--seeds sets how many seeds there are"),
        (["--vary", "seed=0,1"], "--seeds sets how many seeds there are"),
        (["--vary", "log_every=1,2"], "the results do not depend on it"),
        (["--vary", "epochs=1,2", "--only", "0.9"], "there is no finding to compare"),
        (["--set", "knn_every=0"], "runs are evaluated by kNN too"),
        (["--minutes", "-1"], "--minutes -1.0: at least 0"),
    ],
)
def test_what_cannot_be_set_is_named(words, message, tiny, npz, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        reproduce(npz, tmp_path, *words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_if_no_run_can_be_had_that_is_an_error_and_no_page_is_left(tiny, npz, tmp_path, capsys, random_npz):
    for words, message in (
        (["--set", "batch_size=512"], "the data set has only 72 training images"),
        (["--data", f"npz:{random_npz(80, classes=0)}", "--set", "per_class=none"], "has no labels to evaluate with"),
        (["--data", f"npz:{tmp_path}/none.npz"], "no such path"),
    ):
        with pytest.raises(SystemExit) as left:
            reproduce(npz, tmp_path / "out", *words, "--seeds", "1")
        assert left.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_skipped(tiny, npz, tmp_path, capsys, locked_elsewhere):
    reproduce(npz, tmp_path, "--seeds", "1")
    (tmp_path / "moco-0.9-seed0" / "result.json").unlink()
    with locked_elsewhere(tmp_path / "moco-0.9-seed0"):
        reproduce(npz, tmp_path, "--seeds", "1")
    message = capsys.readouterr()
    assert "another process is training it" in " ".join(message.err.split())
    assert "1 of 2 runs are done; the same command continues" in message.out


def test_a_result_of_version_0_1_0_is_read(tiny, tmp_path):
    (job, *_) = plan(tiny.cells("cpu"), 1, tmp_path, Compute())
    run = Run.create(job.folder, job.config)
    run.write_json("result", {"series": "MoCo", "x": 0.0, "seed": 0, "lookup": 0.25})
    assert job.result() == {"series": "MoCo", "x": 0.0, "seed": 0, "contrastive": 0.25}


@pytest.mark.slow
def test_a_result_that_is_damaged_is_named(tiny, npz, tmp_path, capsys):
    reproduce(npz, tmp_path, "--seeds", "1")
    path = tmp_path / "moco-0.9-seed0" / "result.json"
    for text in ("[1, 2]", '{"seed": 0}', "{"):
        path.write_text(text)
        with pytest.raises(SystemExit) as left:
            reproduce(npz, tmp_path, "--seeds", "1")
        assert left.value.code == 2
        assert f"{path}: cannot be read: remove it" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_named_before_anything_runs(tiny, npz, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as left:
        reproduce(npz, tmp_path / "out", "--page", str(tmp_path / "file"))
    assert left.value.code == 2
    assert "cannot be created" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_path_among_the_options_is_no_path_in_the_page_s_name(tiny, npz, tmp_path):
    out = tmp_path / "[/bold] out"
    cli.main(["reproduce", "momentum", "--set", f"data=npz:{npz}", "--seeds", "1", "--out", str(out)])
    (page,) = out.glob("*.md")
    assert "2 of 2 runs" in page.read_text()


def test_a_dry_run_prints_the_cost_and_starts_nothing(tiny, npz, tmp_path, capsys):
    reproduce(npz, tmp_path / "runs", "--dry-run")
    message = capsys.readouterr().out
    assert "MoCo 0.9" in message
    assert "4 runs are missing" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_curves_over_epochs_are_drawn(tiny, npz, tmp_path, monkeypatch):
    cells = [Cell("with", "", tiny.cells("cpu")[0].config), Cell("without", "", tiny.cells("cpu")[1].config)]
    claims = [Claim("it cheats", ("without", ""), ("with", ""), "contrastive")]
    curves = replace(
        tiny, axis="epoch", grid=lambda scale, changes: changed(cells, changes), claims=lambda scale: claims
    )
    monkeypatch.setitem(EXPERIMENTS, "momentum", curves)
    reproduce(npz, tmp_path, "--seeds", "1", "--page", str(tmp_path / "page"))
    assert (tmp_path / "page/momentum-cpu-curves.png").stat().st_size > 10_000
    assert "one seed" in (tmp_path / "page/momentum-cpu.md").read_text()
