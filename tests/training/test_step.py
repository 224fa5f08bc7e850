"""One step: its learning rate, and when gradients are synchronised."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from moco.contrast import InfoNCE
from moco.data import InMemory, Source
from moco.runs.config import check
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.training import Pretraining, device_of
from moco.training.build import check_mechanism
from moco.training.schedules import learning_rate
from moco.views import Views
from tests.training.test_fast import CONFIG


def training_of(tmp_path, **changes) -> Pretraining:
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = replace(CONFIG, training=replace(CONFIG.training, **changes))
    return Pretraining(config, Source(InMemory(images), None, None), Run(tmp_path), device_of(config.compute))


def steps(run: Pretraining, number: int) -> Iterator[int]:
    for step, batch in enumerate(run.loader.training(16, 0, 0, number)):
        run.update(*run.inputs(batch))
        yield step


def test_each_step_has_the_learning_rate_of_its_place(tmp_path):
    run = training_of(tmp_path, warmup=1, epochs=3)
    assert run.lr == learning_rate(run.config.training, 0, 4)
    for step in steps(run, 6):
        expected = learning_rate(run.config.training, step, 4)
        assert run.optimizer.param_groups[0]["lr"] == run.last_lr == pytest.approx(expected)


@pytest.mark.parametrize("length", [{"epochs": 3}, {"iterations": 11}])
@pytest.mark.parametrize("every", [1, 2, 3, 20])
def test_as_many_evaluations_are_to_come_as_will_be_due(tmp_path, length, every):
    run = training_of(tmp_path, **length)
    run.config = replace(run.config, log=replace(run.config.log, knn_every=every))
    left, due = [run.evaluations_left()], []
    for step in range(1, run.steps + 1):
        run.step = step
        due.append(run.knn_due())
        left.append(run.evaluations_left())
    assert due[-1]
    assert left == [sum(due[step:]) for step in range(run.steps + 1)]


def test_progressive_resizing_draws_the_same_views_first_smaller_then_whole(tmp_path):
    run = training_of(tmp_path, epochs=3)
    whole = list(run.batches(0, run.steps))
    small = replace(run.config, views=replace(run.config.views, start_scale=0.5, start_share=0.4))
    run = Pretraining(small, run.source, run.run, run.device)
    batches = list(run.batches(0, run.steps))
    assert run.steps == len(batches) == 12
    assert [batch.views[0].shape[-1] for batch in batches] == [8] * 5 + [16] * 7  # 40 % of 12 steps
    assert all(torch.equal(one.images, other.images) for one, other in zip(batches, whole, strict=True))
    assert all(torch.equal(one.views[1], other.views[1]) for one, other in zip(batches[5:], whole[5:], strict=True))
    of_size_8 = Views(run.config.views.views, 8, run.config.training.seed, run.device.channels_last)
    assert [run.work(step) for step in (0, 3, 5, 6, 12)] == [0, 1.5, 2.5, 3.5, 9.5]  # half of a whole step
    by_hand = of_size_8(run.source.train.at(batches[3].images), batches[3].images, 0)
    assert torch.equal(batches[3].views[0], by_hand[0])
    for start in (0, 3, 5, 9):  # from any step, as a run that is continued
        for batch, other in zip(run.batches(start, 12), batches[start:], strict=True):
            assert torch.equal(batch.views[0], other.views[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_scale": 0.0}, r"--start-scale 0.0: in 0\.1\.\.1"),
        ({"start_scale": 1.5}, r"--start-scale 1.5: in 0\.1\.\.1"),
        ({"start_share": 1.5}, r"--start-share 1.5: in 0\.\.1"),
        ({"start_scale": 0.1, "image_size": 10}, r"--start-scale 0\.1: tiny.* cannot take images of this size"),
    ],
)
def test_bad_sizes_to_start_with_are_one_line(changes, message):
    config = replace(CONFIG, views=replace(CONFIG.views, **changes))
    checked = check_mechanism if "image_size" in changes else lambda config, new: check(config)
    with pytest.raises(UserError, match=message):
        checked(config, new=False)


def test_gradients_are_synchronised_once_a_step(tmp_path):
    """In the last of the gradient-accumulation steps."""
    parts: list[str] = []

    class Watched:
        """In place of DistributedDataParallel."""

        def __call__(self, forward: Callable[[], InfoNCE]) -> InfoNCE:
            parts.append("part")
            return forward()

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            parts.append("no_sync")
            yield

    run = training_of(tmp_path, accumulation_steps=2)
    run.distributed = Watched()
    assert list(steps(run, 2)) == [0, 1]
    assert parts == ["no_sync", "part", "part"] * 2


def test_the_last_batch_of_the_last_epoch_is_a_step(tmp_path):
    """64 images, 24 at a time: two batches and two thirds."""
    assert training_of(tmp_path, batch_size=24, epochs=1).steps == 3
    assert training_of(tmp_path, batch_size=16, epochs=1).steps == 4


def test_what_is_logged_is_of_the_whole_batch(tmp_path):
    """Loss and accuracy are means over the gradient-accumulation steps; the norm is Euclidean, over all parameters."""
    logged = []
    for accumulation_steps in (1, 2):
        run = training_of(tmp_path, accumulation_steps=accumulation_steps)
        squares, step = [], run.optimizer.step
        run.optimizer.step = lambda run=run, squares=squares, step=step: (
            squares.extend(p.grad.square().sum() for p in run.parameters if p.grad is not None),
            step(),
        )
        assert list(steps(run, 1)) == [0]
        logged.append(run.pending_values()[0])
        torch.testing.assert_close(logged[-1][2], torch.stack(squares).sum().sqrt())
    torch.testing.assert_close(logged[1], logged[0], rtol=1e-4, atol=1e-5)
