"""The loop: when it logs, evaluates, monitors, saves and stops."""

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moco.data import InMemory, Source
from moco.diagnosis.doctor import Finding
from moco.runs.folder import Run, read_lines
from moco.runs.options import with_options
from moco.runtime.signals import Signals, Stopped
from moco.training import Diverged, Pretraining, device_of, loop, pretrain
from tests.training.test_fast import CONFIG

QUIET = {"log_every": 1000, "monitor_every": 0, "knn_every": 0, "iterations": 6}


def labelled(n: int) -> InMemory:
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return InMemory(images, torch.arange(n) % 2)


def trained(tmp_path, resume: bool = False, **options: Any) -> Run:
    """64 images, 16 at a time: 4 steps an epoch."""
    config = with_options(replace(CONFIG, log=replace(CONFIG.log, knn_k=3)), **options)
    config = with_options(config, workers=0)
    run = Run(tmp_path / "run") if resume else Run.create(tmp_path / "run", config)
    pretrain(config, Source(labelled(64), labelled(8), None), run, device_of(config.compute), resume)
    return run


def steps_with(run: Run, name: str) -> list[int]:
    return [line["step"] for line in read_lines(run.metrics) if name in line]


def after_update(monkeypatch, act: Callable[[Pretraining], None]) -> None:
    update = Pretraining.update

    def updated(self: Pretraining, *inputs: torch.Tensor) -> None:
        update(self, *inputs)
        act(self)

    monkeypatch.setattr(Pretraining, "update", updated)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The loop's time in seconds, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_each_is_due_at_its_steps_at_the_end_and_knn_at_the_start_too(tmp_path):
    run = trained(tmp_path, epochs=2, log_every=3, monitor_every=5, knn_every=1)
    assert steps_with(run, "loss") == [3, 6, 8]
    assert steps_with(run, "rank") == [5, 8]
    assert steps_with(run, "knn") == [0, 4, 8]


def test_of_a_run_of_steps_knn_is_due_by_steps(tmp_path):
    run = trained(tmp_path, **QUIET | {"knn_every": 2, "iterations": 5})
    assert steps_with(run, "knn") == [0, 2, 4, 5]
    assert steps_with(run, "rank") == []  # --monitor-every 0


@pytest.mark.parametrize(("steps", "every"), [(6, 100), (10_000, 100), (30_000, 300)])
def test_the_monitor_runs_a_hundred_times_but_not_more_often_than_each_100_steps(tmp_path, steps, every):
    config = with_options(CONFIG, iterations=steps)
    source = Source(labelled(64), None, None)
    training = Pretraining(config, source, Run.create(tmp_path / "run", config), device_of(config.compute))
    assert loop._Logger(training, SimpleNamespace(), SimpleNamespace()).monitor_every == every


def test_a_checkpoint_is_written_so_many_minutes_after_the_last(tmp_path, monkeypatch, clock):
    def half_a_minute(_: Pretraining) -> None:
        clock[0] += 30

    after_update(monkeypatch, half_a_minute)
    run = trained(tmp_path, **QUIET, checkpoint_minutes=1.0, keep_checkpoints=9)
    assert [int(path.stem.removeprefix("step-")) for path in reversed(run.saved())] == [0, 2, 4, 6]


def test_waiting_is_the_share_of_the_time_since_the_line_before(tmp_path, monkeypatch, clock):
    def slow_at_first(self) -> Iterator[Any]:
        for number, batch in enumerate(batches(self)):
            clock[0] += 3 if number < 2 else 0
            yield batch

    def a_second(_: Pretraining) -> None:
        clock[0] += 1

    batches = loop._Logger.batches
    monkeypatch.setattr(loop._Logger, "batches", slow_at_first)
    after_update(monkeypatch, a_second)
    run = trained(tmp_path, **QUIET | {"log_every": 2, "iterations": 4})
    assert [line["waiting"] for line in read_lines(run.timing)] == [0.75, 0.0]


@pytest.mark.parametrize(("start_scale", "expected"), [(0.5, [5]), (1.0, [])])
def test_the_time_left_is_measured_anew_when_views_become_larger(tmp_path, monkeypatch, start_scale, expected):
    restarted = []
    monkeypatch.setattr(loop.Bar, "restart", lambda bar, step: restarted.append(step))
    trained(tmp_path, iterations=8, start_scale=start_scale, start_share=0.6)
    assert restarted == expected


def test_a_signal_in_the_last_step_comes_too_late(tmp_path, monkeypatch):
    def at_the_last(training: Pretraining) -> None:
        if training.step == training.steps:
            signal.raise_signal(signal.SIGTERM)

    after_update(monkeypatch, at_the_last)
    assert trained(tmp_path, **QUIET).saved()[0].stem == "step-000000006"


def test_a_finding_is_logged_once_though_the_run_is_continued_and_a_good_one_never(tmp_path, monkeypatch, caplog):
    found = [Finding("ill", "warning", "", "", "", ""), Finding("well", "good", "", "", "", "")]
    monkeypatch.setattr(loop, "diagnose", lambda run: found)
    monkeypatch.setattr(Signals, "agree", lambda self, due: (signal.SIGTERM, due))  # after each step
    for _ in range(2):
        with caplog.at_level(logging.WARNING, logger="moco"), pytest.raises(Stopped):
            trained(tmp_path, resume=(tmp_path / "run").exists(), **QUIET | {"monitor_every": 1})
    assert [message.split(":")[0] for message in caplog.messages] == ["ill"]


def test_weights_that_are_not_finite_end_the_run_before_they_are_monitored(tmp_path, monkeypatch):
    def spoil(training: Pretraining) -> None:
        if training.step == 2:
            training.parameters[0].data.fill_(torch.nan)

    after_update(monkeypatch, spoil)
    with pytest.raises(Diverged, match="the weights after step 2 are not finite"):
        trained(tmp_path, **QUIET | {"monitor_every": 2})
    assert read_lines(Run(tmp_path / "run").metrics)[-1] == {"step": 2, "diverged": 2}
