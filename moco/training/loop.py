"""Pre-training: one loop, whose position is one number, the step."""

import logging
import time
from collections.abc import Iterable, Iterator

from moco.data import Batch, Source
from moco.diagnosis.doctor import Finding, diagnose
from moco.diagnosis.monitor import Monitor
from moco.runs.config import Config
from moco.runs.folder import Run
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import is_main, world_size
from moco.runtime.signals import Signals, Stopped
from moco.training.log import Bar, MetricsWriter
from moco.training.loggers import open_logger
from moco.training.step import Diverged, Metrics, Pretraining

log = logging.getLogger("moco")


def pretrain(
    config: Config, source: Source, run: Run, device: Device, resume: bool = False, deadline: float | None = None
) -> None:
    """Trains until the last step. Raises Stopped when SIGINT or SIGTERM stops it, after saving.

    At the deadline, a time of time.monotonic(), it stops as at SIGTERM.

    Raises UserError for options that do not fit together or the data, and Diverged when the loss is not finite.
    """
    training = Pretraining(config, source, run, device)
    new = not (resume and training.load())
    if new:
        training.start()
    logger = open_logger(run, config) if is_main() else None
    writer = MetricsWriter(run, training.metrics_size, training.step, is_main(), logger)
    bar = Bar(training.step, training.steps, config.training.batch_size, training.work)
    try:
        with Signals(deadline) as signals:
            _loop(training, _Logger(training, writer, bar), signals, new)
    except Diverged as diverged:
        writer.write(diverged.step, {"diverged": diverged.step})
        raise
    finally:
        bar.close()
        writer.close()


def _loop(training: Pretraining, logger: "_Logger", signals: Signals, new: bool) -> None:
    config = training.config
    evaluated = config.log.knn_every > 0 and training.source.labelled
    if new:
        logger.write_facts()
        if evaluated:
            logger.evaluate()
        logger.save()  # whether it can be written shows before an hour is spent; a failure has one to go back to
    saved = time.monotonic()
    switches = {first for first, _, _ in training.phases()} - {0}
    for batch in logger.timed(logger.batches()):
        training.update(*training.inputs(batch))
        step, last = training.step, training.step == training.steps
        knn_due = evaluated and training.knn_due()
        monitor_due = logger.monitor_due()
        stop, due = signals.agree(time.monotonic() - saved >= 60 * config.log.checkpoint_minutes)
        save = bool(stop or last or due)
        if step % config.log.log_every == 0 or last:
            logger.log(wait=knn_due or monitor_due or save)
            logger.agree_on_unreadable()
        elif knn_due or monitor_due or save:
            logger.write_metrics()
        if knn_due:
            logger.evaluate()
        if monitor_due:
            logger.monitor()
        if save:
            logger.save()
            saved = time.monotonic()
        if stop and not last:
            raise Stopped(stop, step)
        if step in switches:  # to views of another size
            logger.bar.restart(step)


class _Logger:
    """What is recorded of the run during training: metrics, the bar, kNN, the monitor, the doctor's findings."""

    def __init__(self, training: Pretraining, writer: MetricsWriter, bar: Bar) -> None:
        self.training, self.writer, self.bar = training, writer, bar
        config, source = training.config, training.source
        self.probe = Monitor(config, training.mechanism, training.loader, len(source.train), training.device)
        every = config.log.monitor_every
        self.monitor_every = max(100, training.steps // 100) if every is None else every
        self.on_the_way: Metrics | None = None
        self.found = {finding.name for finding in self._findings()} if training.step else set()
        self.start, self.waited = time.monotonic(), 0.0

    def batches(self) -> Iterator[Batch]:
        """The batches that are left. If one cannot be read, a run on one rank is saved as far as it came."""
        try:
            yield from self.training.batches(self.training.step, self.training.steps)
        except UserError:
            if world_size() == 1:
                self._save_before_failing()
            raise

    def agree_on_unreadable(self) -> None:
        """Counts unreadable images over all ranks. Raises UserError on all of them, after saving, if too many."""
        try:
            self.training.loader.agree_on_unreadable()
        except UserError:
            self._save_before_failing()
            raise

    def _save_before_failing(self) -> None:
        self.write_metrics()
        self.save()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; how long the loop waits for each is added up."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def write_facts(self) -> None:
        """The mechanism's own facts and the data set's size, for readers of the run that have neither."""
        training, batch = self.training, self.training.config.training.batch_size
        facts = {
            "chance_loss": training.mechanism.chance_loss(batch),
            "keys_per_step": training.mechanism.keys_per_step(batch),
            "images": len(training.source.train),
        }
        self.writer.write(0, {"epoch": 0.0, **facts})

    def log(self, wait: bool) -> None:
        """Writes the metrics on the way and takes the next, which on a GPU are written a line later unless `wait`."""
        self.write_metrics()
        self.on_the_way = self.training.take_pending()
        if wait or self.on_the_way.arrived is None:
            self.write_metrics()

    def write_metrics(self) -> None:
        """Writes the metrics that are on the way from the device."""
        if self.on_the_way is None:
            return
        metrics, self.on_the_way = self.on_the_way, None
        values = self.training.mean(metrics)
        self.writer.write(metrics.step, {"epoch": metrics.epoch, **values, "lr": metrics.lr})
        rate = self.bar.update(
            self.training.step, epoch=int(metrics.epoch), loss=values["loss"], accuracy=values["accuracy"]
        )
        now = time.monotonic()
        share = min(1.0, self.waited / max(now - self.start, 1e-9))
        self.start, self.waited = now, 0.0
        self.writer.write_timing(metrics.step, {"images_per_second": rate, "waiting": share})

    def evaluate(self) -> None:
        """Records the kNN accuracy."""
        start = time.monotonic()
        accuracy = self.training.knn()
        self.bar.pause(time.monotonic() - start, self.training.evaluations_left())
        self.writer.write(self.training.step, {"epoch": self.training.epoch, "knn": accuracy})
        self.bar.update(self.training.step, knn=f"{accuracy:.1%}")

    def monitor_due(self) -> bool:
        step = self.training.step
        return self.monitor_every > 0 and (step % self.monitor_every == 0 or step == self.training.steps)

    def monitor(self) -> None:
        """Records what the monitor measures; each of the doctor's findings is logged once."""
        self.training.require_finite()
        self.writer.write(self.training.step, {"epoch": self.training.epoch, **self.probe.measure(self.training.step)})
        for finding in self._findings():
            if finding.name not in self.found and finding.severity != "good":
                self.found.add(finding.name)
                log.warning("%s: %s (%s)", finding.name, finding.advice, finding.evidence)

    def save(self) -> None:
        """Writes a checkpoint, and how much of metrics.jsonl belongs to it."""
        self.training.metrics_size = self.writer.size()
        self.training.save()

    def _findings(self) -> list[Finding]:
        if not is_main():
            return []
        self.writer.size()
        return diagnose(self.training.run)
