"""What a run would cost on this machine, measured by a few steps of it."""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch

from moco.data import Source
from moco.evaluation.features import extract
from moco.runs.config import Config, Linear
from moco.runs.folder import Run
from moco.runtime.device import Device
from moco.training.step import Pretraining

_STEPS, _SECONDS = 5, 2.0
"""At least so many steps are timed, and for so long."""


class Estimate(NamedTuple):
    """What a run would cost here, measured by a few steps of it."""

    steps: int
    seconds: float
    memory_mb: float
    """The most of the GPU; on a CPU, of the process until then."""


def estimate(config: Config, source: Source, device: Device, linear: Linear | None = None) -> Estimate:
    """The cost of a whole run, its evaluations included, and the linear protocol if there is to be one."""
    device.reset_peak()
    training = Pretraining(config, source, Run(Path()), device)  # a run that is not written
    options = config.training
    seconds = sum((last - first) * _step(training, first, last) for first, last, _ in training.phases() if first < last)
    if source.labelled and source.test is not None:
        sample = source.test.subset(torch.arange(min(512, len(source.test))))
        start = time.perf_counter()
        extract(training.mechanism.query.backbone, sample, training.centre, device, workers=config.compute.workers)
        each = (time.perf_counter() - start) / len(sample)
        every, length = config.log.knn_every, options.iterations or options.epochs
        evaluations = 1 + length // every if every else 0  # one at the start
        seconds += evaluations * each * (len(source.test) + len(source.labelled_train))
        if linear is not None:
            passes = 1 if linear.cached else linear.epochs
            seconds += each * (len(source.test) + passes * len(source.labelled_train))
    return Estimate(training.steps, seconds, device.peak_mb())


def _step(training: Pretraining, first: int, last: int) -> float:
    """Seconds of one of these steps, data included, without the first ones, which set up, compile and record."""
    times: list[float] = []
    batches = training.batches(first, min(last, first + 1000))
    together = _STEPS if training.recorded else 1  # while a GPU computes, the CPU prepares the next steps
    start = time.perf_counter()
    for number, batch in enumerate(batches, start=1):
        training.update(*training.inputs(batch))
        if number % together:
            continue
        training.pending[-1].sum().item()  # waits for a GPU
        times.append((time.perf_counter() - start) / together)
        if number > _STEPS and together * sum(times) > _SECONDS:
            break
        start = time.perf_counter()
    if not times:  # fewer steps than are timed together
        times.append((time.perf_counter() - start) / max(1, last - first))
    return statistics.mean(times[1:] or times)  # views are drawn for several steps at once
