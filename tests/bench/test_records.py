"""A record: three seeds of one command, a mean at or above the mark, a log."""

import json
import os
from pathlib import Path

import pytest

from bench.records.__main__ import main


def reaching(*accuracies: float):
    """A run that lasts two minutes, for each accuracy."""
    left, commands = list(accuracies), []

    def run(words: list[str], folder: Path) -> float:
        commands.append(words)
        if words[1] == "pretrain":
            (folder / "checkpoints").mkdir(parents=True)
            for step, at in ((0, 1006), (30, 1120)):
                path = folder / f"checkpoints/step-{step:09d}.pt"
                path.touch()
                os.utime(path, (at, at))
        else:
            path = Path(words[2]) / f"{words[1]}.json"
            path.write_text(json.dumps({"accuracy": {"top-1": left.pop(0)}}))
        return 1000.0

    return run, commands


def words(tmp_path: Path, *more: str) -> list[str]:
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--name", "log"]
    return ["cifar10-cpu", "--data", "npz:x", "--target", "50", *places, *more]


def test_a_mean_at_the_mark_is_a_record(tmp_path, capsys):
    run, commands = reaching(0.49, 0.5, 0.51)
    main([*words(tmp_path, "--what", "lr"), "--", "--lr", "0.1"], run)
    row = capsys.readouterr().out.splitlines()[-1]
    assert "| knn 50 (49.00, 50.00, 51.00) |" in row
    assert "| **2.00** (2.00 to 2.00) | lr | [log.json](log.json) |" in row
    log = json.loads((tmp_path / "log.json").read_text())
    assert [seed["seed"] for seed in log["seeds"]] == [0, 1, 2]
    trained = [command for command in commands if command[1] == "pretrain"]
    assert all("--knn-every 0 --lr 0.1 --out" in " ".join(command) for command in trained)
    with pytest.raises(SystemExit, match="is there already"):
        main(words(tmp_path), run)


@pytest.mark.parametrize(
    ("more", "accuracies", "why"),
    [
        ((), (0.6, 0.5, 0.39), "49.67 % .* is below the mark of 50 %"),
        (("--minutes", "1.9"), (0.6, 0.5, 0.5), "2.00 minutes is above 1.9"),
    ],
)
def test_what_is_no_record_is_refused(more, accuracies, why, tmp_path):
    with pytest.raises(SystemExit, match=why):
        main(words(tmp_path, *more), reaching(*accuracies)[0])
    assert not (tmp_path / "log.json").exists()
