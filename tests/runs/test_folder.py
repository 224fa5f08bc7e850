"""A run's folder: nothing half-written, nothing lost, and never another run's."""

import logging
import resource
from dataclasses import replace

import pytest
import torch
import yaml

from moco.runs.checkpoint import is_whole, newest_checkpoint, read_checkpoint, save_checkpoint
from moco.runs.config import Config
from moco.runs.folder import Busy, Run
from moco.runs.options import to_dict
from moco.runs.recipes.recipes import RECIPES
from moco.runtime.errors import UserError

CONFIG = RECIPES["shapes-cpu"].config


def state(step: int, size: int = 4) -> dict:
    return {"step": step, "mechanism": {"w": torch.full((size,), float(step))}}


def names(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", CONFIG)


@pytest.fixture
def logged(monkeypatch, caplog):
    """What is logged, whatever a command before has made of the logger."""
    monkeypatch.setattr(logging.getLogger("moco"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("moco"), "handlers", [])
    caplog.set_level(logging.INFO, logger="moco")
    return caplog


def test_what_is_created_can_be_opened(run):
    assert Run.open(run.path).config() == CONFIG
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == to_dict(CONFIG)
    assert newest_checkpoint(run) is None


def test_a_folder_that_holds_a_run_is_refused_and_untouched(run):
    save_checkpoint(run, 1, state(1), 3)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"already holds a run: --resume continues it, --out starts another in its own folder"
    ):
        Run.create(run.path, replace(CONFIG, recipe="other"))
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_run_is_trained_by_one_process_at_a_time(run, locked_elsewhere):
    with locked_elsewhere(run.path):
        with pytest.raises(Busy, match="another process is training it"), run.locked():
            pass
        assert run.config() == CONFIG
    for _ in range(2):  # the other was killed
        with run.locked():
            pass


def test_what_is_left_of_a_run_without_its_configuration_is_not_overwritten(run):
    save_checkpoint(run, 7, state(7), 3)
    (run.path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"without its config\.yaml"):
        Run.create(run.path, CONFIG)
    assert names(run) == ["step-000000007.pt"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be created"):
            Run.create(path, CONFIG)


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="no such path"):
        Run.open(tmp_path / "none")
    with pytest.raises(UserError, match="no such run"):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["", "a: [", "3", "\x00", "training:\n- 1\n", "training: {foo: 1}"])
def test_a_damaged_configuration_is_reported_in_one_line(run, text):
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        run.config()
    assert "\n" not in str(caught.value)


def test_other_options_are_named(run):
    run.require(CONFIG)
    training = CONFIG.training
    with pytest.raises(UserError) as caught:
        run.require(replace(CONFIG, training=replace(training, epochs=training.epochs + 1, lr=7.0)))
    changes = f"epochs {training.epochs} -> {training.epochs + 1}, lr {training.lr} -> 7.0"
    assert f"holds a run with other options: {changes}: leave them out" in str(caught.value)
    with pytest.raises(UserError, match="recipe shapes-cpu -> x"):
        run.require(replace(CONFIG, recipe="x"))


def test_the_last_few_checkpoints_are_kept(run):
    for step in (1, 9, 10, 11, 100):
        path = save_checkpoint(run, step, state(step), 3)
        assert newest_checkpoint(run) == path
    assert names(run) == ["step-000000010.pt", "step-000000011.pt", "step-000000100.pt"]
    assert read_checkpoint(path)["step"] == 100


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # within the tensor
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(run, logged, damage):
    before, last = (save_checkpoint(run, step, state(step, 10_000), 3) for step in (1, 2))
    damage(last)
    assert newest_checkpoint(run) == before
    assert f"{last} is damaged: using the one before it" in logged.text
    assert read_checkpoint(before)["mechanism"]["w"].eq(1).all()


def test_all_damaged_is_refused(run, logged):
    for step in (1, 2):
        truncate(save_checkpoint(run, step, state(step), 3))
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        newest_checkpoint(run)


def test_whatever_byte_is_damaged_a_checkpoint_that_passes_can_be_read(run):
    path = save_checkpoint(run, 1, state(1), 3)
    content = path.read_bytes()
    passed = 0
    for i in range(0, len(content), 2):
        path.write_bytes(content[:i] + bytes([content[i] ^ (1 << i // 2 % 8)]) + content[i + 1 :])
        if is_whole(path):  # padding, a date
            passed += 1
            assert torch.equal(read_checkpoint(path)["mechanism"]["w"], torch.ones(4))
    assert passed < len(content) // 3


def test_a_new_checkpoint_outlives_damaged_ones_of_later_steps(run):
    save_checkpoint(run, 10, state(10), 1)
    damaged = save_checkpoint(run, 30, state(30), 2)
    truncate(damaged)
    path = save_checkpoint(run, 12, state(12), 1)
    assert names(run) == [path.name]
    assert newest_checkpoint(run) == path


def fill_the_disk(run, monkeypatch) -> None:
    def partly(state, file):
        file.write(b"some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", partly)
    save_checkpoint(run, 2, state(2), 1)


def exceed_a_limit(run, monkeypatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        save_checkpoint(run, 2, state(2, 100_000), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("fail", "why"), [(fill_the_disk, "No space left on device"), (exceed_a_limit, "File too large")]
)
def test_a_write_that_fails_leaves_what_was_there(run, monkeypatch, fail, why):
    path = save_checkpoint(run, 1, state(1), 1)
    with pytest.raises(UserError, match=f"cannot be written: .*{why}"):
        fail(run, monkeypatch)
    assert [file.name for file in run.checkpoints.iterdir()] == [path.name]
    assert newest_checkpoint(run) == path
    assert read_checkpoint(path)["step"] == 1


def test_a_write_that_is_interrupted_leaves_no_temporary_file(run, monkeypatch):
    save_checkpoint(run, 1, state(1), 1)

    def interrupted(state, file):
        file.write(b"some of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(run, 2, state(2), 1)
    assert names(run) == ["step-000000001.pt"]


def test_nothing_in_a_checkpoint_is_executed(run):
    path = save_checkpoint(run, 1, {"mechanism": Config}, 1)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


def test_a_protocol_writes_its_json(run):
    assert run.write_json("knn", {"accuracy": 0.5}).read_text() == '{\n  "accuracy": 0.5\n}\n'
