"""The loop that trains any task of transfer, on a toy one."""

import logging
import signal
from pathlib import Path

import pytest
import torch

from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runs.folder import read_lines
from moco.runtime.errors import UserError
from moco.runtime.signals import Stopped
from moco.transfer.config import TransferLog
from moco.transfer.detection.solver import learning_rate
from moco.transfer.run import SegmentationRun
from moco.transfer.trainer import Trainer
from tests.ranks import on_ranks
from tests.transfer.toy import CPU, IMAGES, Toy, config, run

EVERY_STEP = TransferLog(log_every=1)


def checkpoint(folder: Path) -> dict:
    path = newest_checkpoint(SegmentationRun(folder))
    assert path is not None
    return read_checkpoint(path)


def before_step(monkeypatch, step: int, act) -> None:
    """`act()` as the update of this step begins; steps are numbered from 1."""
    update = Trainer.update

    def watched(self, samples):
        if self.step + 1 == step:
            act()
        update(self, samples)

    monkeypatch.setattr(Trainer, "update", watched)


def require_equal(one: dict, two: dict) -> None:
    """Step, weights, BN statistics, momentum, bit for bit."""
    assert one["step"] == two["step"]
    assert [name for name, value in one["model"].items() if not torch.equal(value, two["model"][name])] == []
    for number, state in one["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], two["optimizer"]["state"][number]["momentum_buffer"])


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_run_stopped_anywhere_continues_bit_for_bit(tmp_path, monkeypatch, step):
    """With dropout, momentum, lines of two steps and evaluations, whose precise BN moves the statistics."""
    own, task = config(TransferLog(log_every=2, evaluate_every=3)), {"precise_bn": 2, "dropout": 0.4}
    whole = run(tmp_path / "whole", own, Toy(**task))
    before_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGTERM))
    if step < 7:
        with pytest.raises(Stopped) as stopped:
            run(tmp_path / "run", own, Toy(**task))
        assert (stopped.value.step, stopped.value.signal_number) == (step, signal.SIGTERM)
        monkeypatch.undo()
        measured = run(tmp_path / "run", own, Toy(**task), resume=True)
    else:  # what was the last step is done
        measured = run(tmp_path / "run", own, Toy(**task))
    assert measured.numbers == whole.numbers
    require_equal(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "whole"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_a_run_that_is_killed_continues_from_its_last_checkpoint(tmp_path, monkeypatch, minutes):
    own = config(TransferLog(log_every=1, checkpoint_minutes=minutes))
    run(tmp_path / "whole", own, Toy())

    class Killed(Exception):  # noqa: N818
        pass

    def kill():
        raise Killed

    before_step(monkeypatch, 5, kill)
    with pytest.raises(Killed):
        run(tmp_path / "run", own, Toy())
    monkeypatch.undo()
    assert checkpoint(tmp_path / "run")["step"] == (4 if minutes == 0 else 0)
    run(tmp_path / "run", own, Toy(), resume=True)
    require_equal(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "whole"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_a_finished_run_is_evaluated_once_more_and_stays_as_it_is(tmp_path):
    first = run(tmp_path, config(), Toy(precise_bn=2))
    before = checkpoint(tmp_path)
    (tmp_path / "written").unlink()
    metrics = (tmp_path / "metrics.jsonl").read_text()
    again = run(tmp_path, config(), Toy(precise_bn=2), resume=True)
    assert again.numbers == first.numbers
    require_equal(checkpoint(tmp_path), before)
    assert (tmp_path / "metrics.jsonl").read_text() == metrics
    assert (tmp_path / "written").read_text() == str(first.numbers["accuracy"])


def test_every_image_comes_once_an_epoch_and_the_rate_falls_as_scheduled(tmp_path):
    task, own = Toy(), config(EVERY_STEP)
    run(tmp_path, own, task)
    taken = task.read_images[:-IMAGES]  # the rest is the evaluation's
    assert len(taken) == 7 * 4
    for epoch in (0, 1):
        assert sorted(index for e, index in taken if e == epoch) == list(range(IMAGES))
    rates = [line["lr"] for line in read_lines(tmp_path / "metrics.jsonl") if "lr" in line]
    assert rates == [learning_rate(step, 0.1, (5,), 3) for step in range(7)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[-1] == pytest.approx(0.01)
    decays = [group["weight_decay"] for group in checkpoint(tmp_path)["optimizer"]["param_groups"]]
    assert decays == [1e-4, 0.0]


def test_a_line_of_metrics_is_the_mean_over_its_steps(tmp_path):
    run(tmp_path / "each", config(EVERY_STEP), Toy())
    run(tmp_path / "three", config(TransferLog(log_every=3)), Toy())
    each = [line for line in read_lines(tmp_path / "each" / "metrics.jsonl") if "loss" in line]
    lines = [line for line in read_lines(tmp_path / "three" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 7]
    for name in ("loss", "right", "small"):
        assert lines[0][name] == pytest.approx(sum(line[name] for line in each[:3]) / 3, rel=1e-5)
    assert all(line["loss"] == pytest.approx(line["right"] + line["small"], rel=1e-5) for line in each)


def test_evaluations_come_when_they_are_due_in_evaluation_mode(tmp_path):
    task = Toy()
    run(tmp_path, config(TransferLog(log_every=7, evaluate_every=3)), task)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], "accuracy" in line) for line in lines] == [(3, True), (6, True), (7, False), (7, True)]
    assert [training for training, _ in task.model.seen].count(False) == 3 * IMAGES
    assert (tmp_path / "written").read_text() == str(lines[-1]["accuracy"])


def test_precise_bn_sets_the_statistics_before_an_evaluation(tmp_path):
    plain, precise = Toy(), Toy(precise_bn=3)
    run(tmp_path / "plain", config(), plain)
    run(tmp_path / "precise", config(), precise)
    one, two = checkpoint(tmp_path / "plain")["model"], checkpoint(tmp_path / "precise")["model"]
    differing = [name for name in one if not torch.equal(one[name], two[name])]
    assert differing == ["norm.running_mean", "norm.running_var"]


def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(tmp_path, caplog):
    logging.getLogger("moco").propagate = True
    task = Toy(broken=(3, 4))
    broken = {3: 5, 4: 5}
    own = config(max_bad=0.2)
    trainer = Trainer(own, task, SegmentationRun(tmp_path), CPU)
    for samples in trainer.batches(0, 5, 0):
        trainer.contents(samples)
    expected = Toy()
    for _ in Trainer(own, expected, SegmentationRun(tmp_path), CPU).batches(0, 5, 0):
        pass
    assert task.read_images == [(epoch, broken.get(index, index)) for epoch, index in expected.read_images]
    # caplog may hold a record twice, by its handlers on this logger and on the root.
    messages = [record.getMessage() for record in {id(record): record for record in caplog.records}.values()]
    assert sum("the next one takes its place: image 3 of disk 7" in message for message in messages) == 1
    trainer.unreadable.agree()


def test_more_unreadable_images_than_allowed_end_the_run_in_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"2 of 10 training images .* --max-bad 0.1 \(the first: image 3 of disk 7"
    ) as e:
        run(tmp_path, config(EVERY_STEP, max_bad=0.1, iterations=9), Toy(broken=(3, 4)))
    assert e.value.agreed  # on several ranks all raise it, and one prints it


def test_a_place_for_which_nothing_can_be_read_ends_the_run_in_one_line(tmp_path):
    """Also when all of the images were named before."""
    task = Toy(broken=range(IMAGES))
    trainer = Trainer(config(max_bad=1.0), task, SegmentationRun(tmp_path), CPU)
    (samples,) = trainer.batches(0, 1, 0)
    for _ in range(2):
        with pytest.raises(UserError, match=r"10 training images in a row cannot be read .* disk 7: is broken"):
            trainer.contents(samples)


class OutOfMemory(Toy):
    """Does not fit without checkpointing."""

    def losses(self, samples, device):
        losses = super().losses(samples, device)
        if not self.model.checkpointing:  # where activations have been kept, and BN's statistics moved
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses


def test_what_does_not_fit_is_checkpointed_from_there_on(tmp_path):
    run(tmp_path / "fits", config(), Toy(dropout=0.4))
    task = OutOfMemory(dropout=0.4)
    run(tmp_path / "run", config(), task)
    assert [checkpointing for training, checkpointing in task.model.seen if training] == [False] + [True] * 7
    require_equal(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "fits"))


def test_a_continued_run_checkpoints_from_its_first_step_on(tmp_path, monkeypatch):
    before_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        run(tmp_path, config(), OutOfMemory())
    monkeypatch.undo()
    task = OutOfMemory()
    run(tmp_path, config(), task, resume=True)
    assert [checkpointing for training, checkpointing in task.model.seen if training] == [True] * 4


def test_without_leave_to_checkpoint_it_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"step 1 does not fit .*: --checkpointing yes takes less.*CUDA out of memory"):
        run(tmp_path, config(checkpointing="no"), OutOfMemory())


def test_what_does_not_fit_with_checkpointing_either(tmp_path):
    class TooLarge(Toy):
        def losses(self, samples, device):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, config(checkpointing="yes"), TooLarge())


@pytest.mark.parametrize(("when", "last"), [(3, "step-000000002"), (1, "step-000000000")])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_last_good_checkpoint(tmp_path, when, last):
    class Diverging(Toy):
        def losses(self, samples, device):
            self.steps = getattr(self, "steps", 0) + 1
            return {name: loss * (float("nan") if self.steps == when else 1) for name, loss in
                    super().losses(samples, device).items()}  # fmt: skip

    own = config(TransferLog(log_every=1, checkpoint_minutes=0))
    with pytest.raises(UserError, match=f"loss is not finite by step {when}: a lower --lr .*{last}") as error:
        run(tmp_path, own, Diverging())
    assert "\n" not in str(error.value)
    assert error.value.agreed


def test_a_network_for_other_classes_is_refused_in_one_line(tmp_path):
    run(tmp_path, config(), Toy())
    other = Toy()
    other.model.classifier = torch.nn.Linear(4, 3)
    with pytest.raises(UserError, match="does not fit shapes: it was trained for other classes"):
        run(tmp_path, config(), other, resume=True)


def test_the_network_s_facts_are_in_its_checkpoint(tmp_path):
    run(tmp_path, config(), Toy())
    assert checkpoint(tmp_path)["facts"] == {"classes": ["a", "b"]}


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    """Weights, losses and evaluations; and broken images are counted over both."""
    on_ranks(2, "tests.transfer.ranks", tmp_path)
    run(tmp_path / "one", config(TransferLog(log_every=1, evaluate_every=2)), Toy(precise_bn=2))
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    for name in one["model"]:
        torch.testing.assert_close(two["model"][name], one["model"][name], rtol=1e-4, atol=1e-6, msg=name)
    lines, expected = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert lines == [{name: pytest.approx(value, rel=1e-4) for name, value in line.items()} for line in expected]
    for rank in range(2):
        assert "2 of 10 training images cannot be read" in (tmp_path / f"{rank}.txt").read_text()
