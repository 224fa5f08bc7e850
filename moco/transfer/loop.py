"""The loop that trains a network for any task of transfer."""

import time
from collections.abc import Iterator
from typing import Any

from moco.runs.folder import RunFolder
from moco.runtime.device import Device
from moco.runtime.progress import Bar
from moco.runtime.ranks import is_main, on_main
from moco.runtime.signals import Signals, Stopped
from moco.training.log import MetricsWriter
from moco.transfer.config import TransferConfig
from moco.transfer.loading import Sample
from moco.transfer.task import Measured, Task
from moco.transfer.trainer import Trainer


def train(
    config: TransferConfig,
    task: Task,
    run: RunFolder[Any],
    device: Device,
    resume: bool = False,
    deadline: float | None = None,
) -> Measured:
    """Trains until the last step and evaluates; what was measured is written into the run's folder.

    A run that is continued after its last step is evaluated once more.

    Raises:
        Stopped: SIGINT, SIGTERM or the deadline, a time of time.monotonic(), stopped it; it is saved.
        UserError: the loss is not finite, too many images cannot be read, or a file cannot be written.
    """
    trainer = Trainer(config, task, run, device)
    if resume:
        trainer.load()
    steps = config.training.iterations
    writer = MetricsWriter(run, trainer.metrics_size, trainer.step, is_main())
    logger = _Logger(trainer, writer, Bar("step", steps, trainer.step))
    try:
        with Signals(deadline) as signals:
            _loop(trainer, logger, signals)
        measured = logger.evaluate()
        # How much of metrics.jsonl belongs to it stays: of a run continued here the line of this evaluation is cut off,
        # and written once more.
        trainer.save()
    finally:
        logger.bar.close()
        writer.close()
    on_main(lambda: measured.write(run.path))
    return measured


def _loop(trainer: Trainer, logger: "_Logger", signals: Signals) -> None:
    config, steps = trainer.config, trainer.config.training.iterations
    saved = time.monotonic()
    if not trainer.step:
        logger.save()  # whether it can be written shows before an hour is spent
    samples = trainer.batches(trainer.step, steps, config.training.seed)
    for batch in logger.timed(samples):
        trainer.update(batch)
        step, last = trainer.step, trainer.step == steps
        stop, due = signals.agree(time.monotonic() - saved >= 60 * config.log.checkpoint_minutes)
        if step % config.log.log_every == 0 or last:
            logger.log()
        if config.log.evaluate_every and step % config.log.evaluate_every == 0 and not last:
            logger.evaluate()
        if stop or due or last:
            logger.save()
            saved = time.monotonic()
        if stop and not last:
            raise Stopped(stop, step)


class _Logger:
    """What is recorded of the run during training: metrics, the bar, evaluations."""

    def __init__(self, trainer: Trainer, writer: MetricsWriter, bar: Bar) -> None:
        self.trainer, self.writer, self.bar = trainer, writer, bar
        self.start, self.last = time.monotonic(), trainer.step
        self.waited = 0.0
        self.shown: dict[str, str] = {}

    def timed(self, batches: Iterator[list[Sample]]) -> Iterator[list[Sample]]:
        """The batches; how long the loop waits for each is added up."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def log(self) -> None:
        """Writes a line of metrics, and how fast it goes; counts unreadable images over all ranks."""
        trainer = self.trainer
        values = trainer.take_pending()
        self.writer.write(trainer.step, {**values, "lr": trainer.last_lr})
        now, batch = time.monotonic(), trainer.config.training.batch_size
        seconds = max(now - self.start, 1e-9)
        rate = (trainer.step - self.last) * batch / seconds
        self.writer.write_timing(trainer.step, {"images_per_second": rate, "waiting": min(1.0, self.waited / seconds)})
        self.start, self.last, self.waited = now, trainer.step, 0.0
        self.shown["loss"] = f"{values['loss']:.3f}"
        text = "  ".join(f"{name} {value}" for name, value in self.shown.items())
        self.bar.update(trainer.step, f"{text}  {rate:,.1f} images/s")
        trainer.unreadable.agree()

    def evaluate(self) -> Measured:
        """Evaluates, and records the numbers."""
        began = time.monotonic()
        measured = self.trainer.evaluate()
        self.writer.write(self.trainer.step, measured.numbers)
        self.shown |= {name: f"{value:.1f}" for name, value in list(measured.numbers.items())[:1]}
        self.start += time.monotonic() - began  # images/s are of training alone
        return measured

    def save(self) -> None:
        """Writes a checkpoint, and how much of metrics.jsonl belongs to it."""
        self.trainer.metrics_size = self.writer.size()
        self.trainer.save()
