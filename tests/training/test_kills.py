"""torchrun restarts a run whose ranks are killed, ten times over: it ends as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from moco.runs.folder import Run
from tests.ranks import run_ranks
from tests.training.test_ranks import as_files
from tests.training.test_resume import assert_same_run

RANKS, KILLS, STEPS = 3, 10, 60
OPTIONS = (
    "--encoder tinyw0.25 --image-size 16 --precision fp32 --device cpu --batch-size 24 --bn-group 4 --queue-size 80 "
    "--epochs 15 --log-every 5 --knn-every 10 --knn-k 5 --checkpoint-minutes 0 --cache-mb 0 --workers 1"
)


@pytest.mark.slow
def test_ranks_killed_at_random_moments_end_with_the_weights_of_an_undisturbed_run(tmp_path, random_npz):
    as_files(random_npz(96), tmp_path / "images")
    words = f"pretrain cifar10-cpu --data folder:{tmp_path}/images {OPTIONS} --resume auto --out"
    undisturbed = run_ranks(RANKS, f"{words} {tmp_path / 'whole'}", [tmp_path])
    assert {rank.code for rank in undisturbed} == {0}, undisturbed
    launcher = [
        sys.executable,
        "-m",
        "tests.elastic",
        str(RANKS),
        str(KILLS + 5),
        *f"{words} {tmp_path / 'killed'}".split(),
    ]
    # By steps, not by time: no machine is so fast that the run ends before the last of them.
    moments = [-1, *sorted(random.sample(range(STEPS // 2), KILLS - 3)), 0, 0]  # -1, 0, 0: while it starts
    kills, seen = 0, set()
    with (tmp_path / "printed").open("w") as out:
        process = subprocess.Popen(launcher, stdout=out, stderr=out)
        while process.poll() is None:
            ranks = sorted(_children(process.pid) - seen)
            step = _last_saved(tmp_path / "killed")
            if len(ranks) < RANKS or kills == KILLS or step < moments[kills]:
                time.sleep(0.02)
                continue
            time.sleep(random.random() * 0.2)  # while it trains, measures, or writes a checkpoint
            _kill(random.choice(ranks))
            seen |= set(ranks)
            kills += 1
    printed = (tmp_path / "printed").read_text()
    assert (process.returncode, kills) == (0, KILLS), printed[-3000:]
    assert "moco: rank" in printed
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def _last_saved(run: Path) -> int:
    """The step of the newest checkpoint, -1 if there is none."""
    return max((int(path.stem.removeprefix("step-")) for path in Run(run).saved()), default=-1)


def _children(process: int) -> set[int]:
    """The ranks that the launcher has forked."""
    try:
        return set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except OSError:
        return set()


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):  # it had just ended
        os.kill(process, signal.SIGKILL)
