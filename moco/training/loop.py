"""Pre-training: one loop, whose position is one number, the step."""

import logging
import time
from collections.abc import Iterable, Iterator

from moco.config import Config
from moco.contrast.ranks import rank
from moco.data import Batch, Source
from moco.device import Device
from moco.run import Run
from moco.training.doctor import Finding, diagnose
from moco.training.log import Bar, Metrics
from moco.training.monitor import Monitor
from moco.training.pretraining import Diverged, Pretraining, Reading
from moco.training.signals import Signals, Stopped

log = logging.getLogger("moco")


def pretrain(
    config: Config, source: Source, run: Run, device: Device, resume: bool = False, deadline: float | None = None
) -> None:
    """Trains until the last epoch. Raises Stopped when told to stop by SIGINT or SIGTERM, after saving.

    At the deadline, a time of time.monotonic(), it stops as at SIGTERM.

    Raises UserError for options that do not fit together or the data, and Diverged when the loss is not finite.
    """
    training = Pretraining(config, source, run, device)
    if resume:
        training.load()
    main = rank() == 0
    metrics = Metrics(run, training.metrics_size, training.step, main)
    bar = Bar(training.step, training.steps, config.training.batch_size, main)
    try:
        with Signals(deadline) as signals:
            _loop(training, _Telling(training, metrics, bar), signals)
    except Diverged as diverged:
        metrics.write(diverged.step, {"diverged": diverged.step})
        raise
    finally:
        bar.close()
        metrics.close()


def _loop(training: Pretraining, telling: "_Telling", signals: Signals) -> None:
    config = training.config
    judged = config.log.knn_every > 0 and training.source.labelled
    if judged and training.step == 0:
        telling.judge()
    saved = time.monotonic()
    options, lanes = config.training, config.data.lanes
    batches = training.loader.training(options.batch_size, options.seed, training.step, training.steps, lanes)
    for batch in telling.waiting(batches):
        training.update(*training.inputs(batch))
        step, last = training.step, training.step == training.steps
        knn_due = judged and training.knn_due()
        look_due = telling.look_due()
        told, due = signals.agree(time.monotonic() - saved >= 60 * config.log.checkpoint_minutes)
        save = bool(told or last or due)
        if step % config.log.log_every == 0 or last:
            telling.read(wait=knn_due or look_due or save)
        elif knn_due or look_due or save:
            telling.tell()
        if knn_due:
            telling.judge()
        if look_due:
            telling.look()
        if save:
            training.metrics_size = telling.metrics.size()
            training.save()
            saved = time.monotonic()
        if told and not last:
            raise Stopped(told, step)


class _Telling:
    """What is told of the run while it goes: metrics, the bar, kNN, the monitor, what the doctor finds."""

    def __init__(self, training: Pretraining, metrics: Metrics, bar: Bar) -> None:
        self.training, self.metrics, self.bar = training, metrics, bar
        config, source = training.config, training.source
        self.monitor = Monitor(config, training.mechanism, training.loader, len(source.train), training.device)
        every = config.log.monitor_every
        self.look_every = max(100, training.steps // 100) if every is None else every
        self.reading: Reading | None = None
        self.found = {finding.name for finding in self._findings()} if training.step else set()
        self.start, self.waited = time.monotonic(), 0.0

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; how long each was waited for is added up."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def read(self, wait: bool) -> None:
        """Tells the last reading and takes the next, which on a GPU is told with the one after, if need not be now."""
        self.tell()
        self.reading = self.training.read_pending()
        if wait or self.reading.arrived is None:
            self.tell()

    def tell(self) -> None:
        """Tells the reading that is under way."""
        if self.reading is None:
            return
        reading, self.reading = self.reading, None
        values = self.training.mean(reading)
        self.metrics.write(reading.step, {"epoch": reading.epoch, **values, "lr": reading.lr})
        rate = self.bar.update(
            self.training.step, epoch=int(reading.epoch), loss=values["loss"], accuracy=values["accuracy"]
        )
        now = time.monotonic()
        share = min(1.0, self.waited / max(now - self.start, 1e-9))
        self.start, self.waited = now, 0.0
        self.metrics.write_timing(reading.step, {"images_per_second": rate, "waiting": share})

    def judge(self) -> None:
        accuracy = self.training.knn()
        self.metrics.write(self.training.step, {"epoch": self.training.epoch, "knn": accuracy})
        self.bar.update(self.training.step, knn=f"{accuracy:.1%}")

    def look_due(self) -> bool:
        step = self.training.step
        return self.look_every > 0 and (step % self.look_every == 0 or step == self.training.steps)

    def look(self) -> None:
        """Records what the monitor sees; what the doctor makes of it is said once."""
        self.training.require_finite()
        self.metrics.write(
            self.training.step, {"epoch": self.training.epoch, **self.monitor.measure(self.training.step)}
        )
        for finding in self._findings():
            if finding.name not in self.found and finding.severity != "good":
                self.found.add(finding.name)
                log.warning("%s: %s (%s)", finding.name, finding.advice, finding.evidence)

    def _findings(self) -> list[Finding]:
        if rank() != 0:
            return []
        self.metrics.size()
        return diagnose(self.training.run)
