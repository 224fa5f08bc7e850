"""A run in progress: its state, one step, its checkpoint."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moco.contrast import InfoNCE, Queue
from moco.data import Batch, Loader, Source
from moco.evaluation.knn import evaluate_knn
from moco.runs.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from moco.runs.config import Config, check
from moco.runs.folder import Run
from moco.runtime.cuda_graph import Graphed
from moco.runtime.data_parallel import data_parallel, generator_states, restore_generators, send_state
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import average, gather_objects, on_main, rank, world_size
from moco.training.build import build_mechanism, is_recorded, start_from
from moco.training.optimizers import build_optimizer
from moco.training.schedules import learning_rate
from moco.views import CentreCrop, Views, get_pretext

log = logging.getLogger("moco")


class Metrics(NamedTuple):
    """Metrics of the last steps on their way from the device: nothing waits for them until they are used."""

    step: int
    epoch: float
    lr: float
    values: Tensor
    """Loss, contrastive accuracy and gradient norm of each step, (steps, 3), on the CPU."""
    arrived: torch.cuda.Event | None
    """Recorded when they have arrived; None: they are there."""


class Diverged(UserError):  # noqa: N818  # what the run did, as Stopped
    """The loss or the weights are no longer finite, at a step."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step, self.agreed = step, True


class Pretraining:
    """A run in progress: all of its state, one step, and the checkpoint that makes it the same run later.

    Args:
        config: what the run is made of.
        source: its data.
        run: its folder.
        device: what it computes on.
    """

    def __init__(self, config: Config, source: Source, run: Run, device: Device) -> None:
        check(config, world_size())
        training = config.training
        self.config, self.source, self.run, self.device = config, source, run, device
        n = len(source.train)
        self.steps_per_epoch = n / training.batch_size
        # The last batch of the last epoch is filled up with the first images of another.
        self.steps = training.iterations or -(-training.epochs * n // training.batch_size)
        self.step = 0
        mechanism = build_mechanism(config, n, self.steps, device)
        self.mechanism = device.place(mechanism)
        self.parameters = [p for p in self.mechanism.parameters() if p.requires_grad]
        encoders = [child for child in self.mechanism.children() if not isinstance(child, Queue)]
        self.statistics = [b for encoder in encoders for b in encoder.buffers() if b.is_floating_point()]
        self.recorded = is_recorded(config.compute, device, mechanism)
        self.optimizer = build_optimizer(training, self.parameters, self.recorded)
        pretexts = get_pretext(config.views.views)[: self.mechanism.num_views]
        views = Views(pretexts, config.views.image_size, training.seed, device.channels_last, device.dtype)
        compute = config.compute
        self.loader = Loader(source.train, views, device.device, compute.workers, compute.decoder)
        self.centre = CentreCrop(config.views.views, config.views.image_size, device.channels_last)
        if compute.compile:
            for encoder in encoders:
                encoder.compile()
        self.distributed = data_parallel(self.mechanism, self.parameters) if world_size() > 1 else None
        # A recorded step reads the learning rate from the device.
        self.last_lr = training.lr
        self.lr_on_device = torch.tensor(training.lr, device=device.device) if self.recorded else None
        self.advance: Callable[..., Tensor] = Graphed(self._advance) if self.recorded else self._advance
        self.pending: list[Tensor] = []  # metrics of the steps since the last line of metrics.jsonl
        self.metrics_size = 0

    @property
    def lr(self) -> float:
        """The learning rate of the step that comes."""
        training = self.config.training
        return learning_rate(training, self.step, 1 if training.iterations else self.steps_per_epoch)

    def phases(self) -> list[tuple[int, int, Loader]]:
        """Steps from .. to, and the loader of their views: with progressive resizing the first ones are smaller."""
        views = self.config.views
        if views.start_scale == 1:
            return [(0, self.steps, self.loader)]
        switch = round(views.start_share * self.steps)
        return [(0, switch, self.loader.of_size(views.start_size)), (switch, self.steps, self.loader)]

    def work(self, step: int) -> float:
        """About what the steps before this one take, in steps of full-sized views.

        A step at half the size was measured to take 0.35 to 0.6 of one at the whole, on a CPU (bench/notes.md): so a
        third of it does not go with the views' area.
        """
        full = self.config.views.image_size
        return sum(
            (min(step, last) - first) * (1 + 2 * (loader.views.size / full) ** 2) / 3
            for first, last, loader in self.phases()
            if first < step
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This rank's share of the batches of steps start .. stop-1. Raises UserError as `Loader.training` does."""
        training, streams = self.config.training, self.config.data.shard_streams
        for first, last, loader in self.phases():
            first, last = max(first, start), min(last, stop)
            if first < last:
                yield from loader.training(training.batch_size, training.seed, first, last, streams)

    def update(self, *inputs: Tensor) -> None:
        """One step on what the mechanism takes."""
        self.last_lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_lr if self.lr_on_device is None else self.lr_on_device.fill_(self.last_lr)
        self.pending.append(self.advance(*inputs))
        self.step += 1

    def _advance(self, *inputs: Tensor) -> Tensor:
        """Loss and gradient of every micro-batch, averaged over the ranks, and the optimiser's step.

        Returns loss, contrastive accuracy and gradient norm, (3,).
        """
        steps = self.config.training.accumulation_steps
        results: list[Tensor] = []

        def backward(forward: Callable[[], InfoNCE]) -> None:
            last = len(results) + 1 == steps
            ddp = self.distributed
            with nullcontext() if ddp is None or last else ddp.no_sync():
                result = forward() if ddp is None else ddp(forward)
                # Backward runs outside of autocast, as PyTorch advises.
                with torch.autocast(self.device.device.type, enabled=False):
                    (result.loss / steps).backward()
            results.append(torch.stack((result.loss.detach(), result.accuracy)))

        with self.device.autocast():
            if steps == 1:
                backward(partial(self.mechanism, *inputs))
            else:
                self.mechanism.accumulate(*inputs, chunks=steps, backward=backward)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.cat((torch.stack(results).mean(dim=0), norm[None]))

    def inputs(self, batch: Batch) -> list[Tensor]:
        """What the mechanism takes of a batch."""
        if self.mechanism.takes_index:
            return [*batch.views, batch.images.to(self.device.device, non_blocking=True)]
        return batch.views

    @contextmanager
    def averaged_statistics(self) -> Iterator[None]:
        """Within it the running BN statistics are their mean over the ranks, each of which saw its own images.

        After it they are the rank's own again, so that when they were read changes nothing in the run.
        """
        own = [statistic.clone() for statistic in self.statistics] if world_size() > 1 else []
        average(self.statistics)
        try:
            yield
        finally:
            if own:
                torch._foreach_copy_(self.statistics, own)

    @property
    def epoch(self) -> float:
        """How often every image was seen."""
        return self.step / self.steps_per_epoch

    def knn_due(self) -> bool:
        """Whether the finished step is the first at or after a multiple of --knn-every, or the last."""
        return self.step == self.steps or self._intervals(self.step) > self._intervals(self.step - 1)

    def evaluations_left(self) -> int:
        """How many of the steps to come `knn_due` will hold for."""
        last = self.steps - 1
        return self._intervals(last) - self._intervals(self.step) + 1 if self.step <= last else 0

    def _intervals(self, step: int) -> int:
        """How many times --knn-every has passed after so many steps."""
        every, training = self.config.log.knn_every, self.config.training
        return step // every if training.iterations else step * training.batch_size // (every * len(self.source.train))

    def knn(self) -> float:
        """kNN accuracy of the query encoder's features, in 0..1."""
        log_, workers = self.config.log, self.config.compute.workers
        backbone = self.mechanism.query.backbone
        batch = max(256, self.config.training.batch_size)
        with self.averaged_statistics():
            return evaluate_knn(
                backbone, self.source, self.centre, self.device, log_.knn_k, log_.knn_temperature, batch, workers
            )

    def pending_values(self) -> Tensor:
        """Loss, contrastive accuracy and gradient norm of the pending steps, (steps, 3), means over the ranks."""
        values = torch.stack(self.pending) if self.pending else torch.empty(0, 3)
        average([values])
        return values

    def take_pending(self) -> "Metrics":
        """The same, on its way to the CPU; they are pending no more."""
        values = self.pending_values()
        self.pending.clear()
        reading = Metrics(self.step, self.epoch, self.last_lr, values.to("cpu", non_blocking=True), None)
        if values.is_cuda:
            reading = reading._replace(arrived=torch.cuda.Event())
            reading.arrived.record()  # type: ignore[union-attr]
        return reading

    def mean(self, reading: "Metrics") -> dict[str, float]:
        """The mean of each, waiting for them. Stops the run at a loss that is not finite."""
        if reading.arrived is not None:
            reading.arrived.synchronize()
        self._check(reading.values, reading.step)
        return dict(zip(("loss", "accuracy", "gradient_norm"), reading.values.mean(dim=0).tolist(), strict=True))

    def _check(self, values: Tensor, step: int) -> None:
        finite = values[:, 0].isfinite()
        if not finite.all():
            first = step - len(finite) + int(finite.int().argmin()) + 1
            self._diverged(f"the loss of step {first} is not finite", first)

    def _diverged(self, what: str, step: int) -> None:
        good = on_main(lambda: newest_checkpoint(self.run))
        last = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
        raise Diverged(f"{what}: a lower --lr or --precision fp32 may help; {last}", step)

    def require_finite(self) -> Tensor:
        """The pending values, (steps, 3). Stops the run where they, or the weights, are not finite."""
        pending = self.pending_values()
        self._check(pending, self.step)
        if not torch.stack([p.isfinite().all() for p in self.parameters]).all():
            self._diverged(f"the weights after step {self.step} are not finite", self.step)
        return pending

    def save(self) -> None:
        """Writes the checkpoint of the finished step, unless something in it is not finite. Called on all ranks.

        Raises UserError, on all ranks, if it cannot be written.
        """
        pending = self.require_finite()
        ranks = gather_objects(self._own_state())
        with self.averaged_statistics():
            on_main(lambda: self._write(pending, ranks))

    def _own_state(self) -> dict[str, Any]:
        """What differs from rank to rank."""
        own = torch.stack(self.pending).cpu() if self.pending else torch.empty(0, 3)
        return {
            "pending": own,
            "statistics": [statistic.cpu().clone() for statistic in self.statistics],
            "generators": generator_states(self.device.device),
        }

    def _write(self, pending: Tensor, ranks: list[Any]) -> None:
        state = {
            "step": self.step,
            "mechanism": self.mechanism.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pending": pending,
            "metrics_size": self.metrics_size,
            "ranks": ranks,
        }
        save_checkpoint(self.run, self.step, state, self.config.log.keep_checkpoints)

    def start(self) -> None:
        """A new run: the encoders start from given weights, if there are any, read by the main rank for all of them.

        Raises UserError, on all ranks, if they are not there or do not fit.
        """
        if self.config.encoder.init == "random":
            return
        loaded = on_main(lambda: str(start_from(self.mechanism, self.config)))
        if world_size() > 1:
            send_state(self.mechanism)
        key = "the key encoder is a copy, " if hasattr(self.mechanism, "key") else ""
        log.info("starting from %s; %sthe head starts at random", loaded, key)

    def load(self) -> bool:
        """Continues from the newest checkpoint that is whole, the main rank's, on all ranks. False if there is none."""
        found = on_main(self._read)
        if found is None:
            return False
        path, state = found
        try:
            self.mechanism.load_state_dict(state["mechanism"])
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            wrong = UserError(f"{path}: is of another architecture: {lines[0]}")
            wrong.agreed = True
            raise wrong from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.metrics_size = state["step"], state["metrics_size"]
        pending, ranks = state["pending"], state.get("ranks", [])
        if len(ranks) == world_size():  # else each rank starts with the means, and a generator of its own
            own = ranks[rank()]
            pending = own["pending"]
            torch._foreach_copy_(self.statistics, [statistic.to(self.device.device) for statistic in own["statistics"]])
            restore_generators(own["generators"], self.device.device)
        if pending.shape[1:] == (3,):  # 0.1.0 had fewer numbers
            self.pending = list(pending.to(self.device.device))
        log.info("continuing %s after step %d", self.run.path, self.step)
        return True

    def _read(self) -> tuple[str, dict[str, Any]] | None:
        path = newest_checkpoint(self.run)
        return None if path is None else (str(path), read_checkpoint(path))
