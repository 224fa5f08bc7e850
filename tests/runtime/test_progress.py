"""One progress bar: on a terminal a bar, elsewhere a line every half minute, on other ranks nothing."""

import io

import pytest

from moco.runtime import progress
from moco.runtime.progress import Bar, track
from moco.training.log import Bar as TrainingBar


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, at will."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_every_half_minute(clock, capsys):
    bar = Bar("[bold]packing", 100, done=20)
    for seconds, done in ((10, 30), (31, 40), (50, 60), (62, 80)):
        clock[0] = seconds
        bar.update(done, "loss 1.5")
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "[bold]packing 40/100  loss 1.5  93 s left",  # 20 of 80 steps in 31 s
        "[bold]packing 80/100  loss 1.5  21 s left",
    ]


def test_the_time_left_follows_the_work_that_is_left(clock, capsys):
    """The first 60 of 100 steps take 1 each, the others 4."""
    bar = Bar("step", 100, work=lambda step: min(step, 60) + 4 * max(step - 60, 0))
    for seconds, done in ((60, 30), (120, 60), (280, 80)):  # 2 s, then 8 s a step
        clock[0] = seconds
        bar.update(done)
    assert [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "380 s left",
        "320 s left",
        "160 s left",
    ]


def test_after_a_restart_the_time_left_follows_what_came_since(clock, capsys):
    bar = Bar("step", 100)
    clock[0] = 60
    bar.update(60)
    bar.restart(60)
    clock[0] = 140
    bar.update(80)  # 4 s a step
    assert [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()] == ["40 s left", "80 s left"]


def test_a_pause_is_not_in_the_steps_time_and_those_to_come_are_in_what_is_left(clock, capsys):
    bar = TrainingBar(step=0, steps=100, images_per_step=10)
    clock[0] = 10
    bar.pause(10, 2)  # before the first step
    clock[0] = 50
    assert bar.update(40) == 10  # 1 s a step
    clock[0] = 57
    bar.pause(7, 1)
    clock[0] = 97
    assert bar.update(80) == 10
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["80 s left", "27 s left"]


def test_other_ranks_show_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, "is_main", lambda: False)
    with Bar("packing", 10) as bar:
        clock[0] = 100
        bar.advance(5)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_with_the_text(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Bar("[x] packing", 10) as bar:
        bar.advance(4)
        bar.update(5, "[loss] 1.5")
    assert "[x] packing" in terminal.getvalue()
    assert "5/10" in terminal.getvalue()
    assert "0:00" in terminal.getvalue()
    assert "[loss] 1.5" in terminal.getvalue()


@pytest.mark.parametrize("items", [[1, 2, 3], iter([1, 2, 3])])
def test_items_are_passed_on_and_counted(items, clock, capsys):
    for item in track(items, "indexing"):
        clock[0] = 40 * item
    counts = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert [count.split("/")[0] for count in counts] == ["1", "2", "3"]


def test_training_shows_its_values_and_returns_the_rate(clock, capsys):
    bar = TrainingBar(step=10, steps=110, images_per_step=64)
    clock[0] = 40.0
    assert bar.update(30, epoch=1, loss=2.0, accuracy=0.125) == 32
    clock[0] = 80.0
    bar.update(50, knn="41.0%")
    bar.close()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "step 50/110  epoch 1  loss 2.000  acc 12.5%  kNN 41.0%  32 images/s  120 s left"
    )
