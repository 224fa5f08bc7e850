"""What is logged of a run during training: metrics, TensorBoard events, a progress bar."""

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from rich.logging import RichHandler

from moco.runs.folder import RunFolder
from moco.runtime import progress
from moco.runtime.errors import UserError
from moco.training.loggers import Logger, TensorBoard

log = logging.getLogger("moco")


def start_logging(run: RunFolder[Any] | None, main: bool) -> None:
    """Warnings and news go to the terminal and, of a run, into log.txt; only the main rank logs."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if main else logging.CRITICAL)
    log.addHandler(RichHandler(console=progress.console, show_path=False, show_time=False, show_level=False))
    if run is not None and main:
        try:
            handler = logging.FileHandler(run.path / "log.txt")
        except OSError as error:
            raise UserError(f"{run.path / 'log.txt'}: cannot be written: {error.strerror}") from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)


class MetricsWriter:
    """metrics.jsonl, timing.jsonl and TensorBoard's events of a run. All numbers but the timings are the run's own.

    Args:
        run: whose.
        size: how many bytes of metrics.jsonl belong to the checkpoint that is continued; what came after is cut off.
        step: the checkpoint's.
        main: whether this rank writes; the others do nothing.
        logger: what takes the metrics beside TensorBoard, of the rank that writes.
    """

    def __init__(self, run: RunFolder[Any], size: int, step: int, main: bool, logger: Logger | None = None) -> None:
        self.main = main
        if not main:
            return
        try:
            self._metrics = run.metrics.open("ab")
            self._metrics.truncate(min(size, run.metrics.stat().st_size))
            self._timing = run.timing.open("a")
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
        self._loggers = [TensorBoard(run, step), *([logger] if logger else [])]

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        if self.main:
            self._metrics.write((json.dumps({"step": step, **values}) + "\n").encode())
            self._scalars(step, values)

    def write_timing(self, step: int, values: dict[str, float]) -> None:
        """Adds a line to timing.jsonl."""
        if self.main:
            self._timing.write(json.dumps({"step": step, **values}) + "\n")
            self._scalars(step, values)

    def _scalars(self, step: int, values: dict[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if not isinstance(value, list)}
        for logger in self._loggers:  # a histogram stays in metrics.jsonl
            logger.log(step, numbers)

    def size(self) -> int:
        """Bytes of metrics.jsonl, after they are on the disk."""
        if not self.main:
            return 0
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        return self._metrics.seek(0, os.SEEK_END)

    def close(self) -> None:
        if self.main:
            self._metrics.close()
            self._timing.close()
            for logger in self._loggers:
                logger.close()


class Bar:
    """Progress over the run's steps: epoch, loss, contrastive accuracy, kNN accuracy, images/s, time left."""

    def __init__(self, step: int, steps: int, images_per_step: int, work: Callable[[int], float] = float) -> None:
        self.images_per_step, self.step, self.start = images_per_step, step, time.monotonic()
        self.values: dict[str, Any] = {"epoch": 0, "loss": float("nan"), "accuracy": 0.0, "knn": "-"}
        self.bar = progress.Bar("step", steps, step, work)

    def update(self, step: int, **values: Any) -> float:
        """Shows the state after `step` steps and returns the images/s since the bar was made."""
        rate = (step - self.step) * self.images_per_step / max(time.monotonic() - self.start, 1e-9)
        self.values |= values
        text = "epoch {epoch}  loss {loss:.3f}  acc {accuracy:.1%}  kNN {knn}".format(**self.values)
        self.bar.update(step, f"{text}  {rate:,.0f} images/s")
        return rate

    def restart(self, step: int) -> None:
        """From this step on the time left is measured anew, as steps take another time."""
        self.bar.restart(step)

    def pause(self, seconds: float, to_come: int) -> None:
        """An evaluation took so long, and so many are to come: they are in the time left, not in the images/s."""
        self.start += seconds
        self.bar.pause(seconds, to_come)

    def close(self) -> None:
        self.bar.close()
