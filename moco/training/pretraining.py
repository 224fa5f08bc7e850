"""A run in progress: its state, one step, its checkpoint."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moco.config import Config, check
from moco.contrast import InfoNCE, MemoryBank, Queue
from moco.contrast.ranks import average, rank, world_size
from moco.data import Batch, Loader, Source
from moco.device import Device
from moco.errors import UserError
from moco.evaluation.knn import evaluate_knn
from moco.run import Run, read_checkpoint
from moco.training.build import build_mechanism
from moco.training.graph import Graphed
from moco.training.optimizers import build_optimizer
from moco.training.schedules import learning_rate
from moco.views import CentreCrop, Pretext, Views, get_pretext

log = logging.getLogger("moco")


class Reading(NamedTuple):
    """Numbers of the last steps on their way from the device: nothing waits for them until they are asked for."""

    step: int
    epoch: float
    lr: float
    values: Tensor
    """Loss, look-up accuracy and gradient norm of each step, (steps, 3), on the CPU."""
    arrived: torch.cuda.Event | None
    """When they are there; None: now."""


class Diverged(UserError):  # noqa: N818  # what the run did, as Stopped
    """The loss or the weights are no longer finite, at a step."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


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
        self.mechanism = mechanism.to(device.device, memory_format=device.memory_format)  # type: ignore[call-overload]
        self.parameters = [p for p in self.mechanism.parameters() if p.requires_grad]
        encoders = [child for child in self.mechanism.children() if not isinstance(child, Queue)]
        self.statistics = [b for encoder in encoders for b in encoder.buffers() if b.is_floating_point()]
        self.optimizer = build_optimizer(training, self.parameters, recorded=config.compute.cuda_graph)
        pretexts: tuple[Pretext, ...] = get_pretext(config.views.views)
        if config.contrast.mechanism == "memory-bank":
            pretexts = pretexts[:1]  # the other view of an image is the bank's
        views = Views(pretexts, config.views.image_size, training.seed, device.channels_last, device.dtype)
        compute = config.compute
        self.loader = Loader(source.train, views, device.device, compute.workers, compute.decoder)
        self.centre = CentreCrop(config.views.views, config.views.image_size, device.channels_last)
        if compute.compile:
            for encoder in encoders:
                encoder.compile()
        # A recorded step reads the learning rate where it lies.
        self.last_lr = training.lr
        self.lr_on_device = torch.tensor(training.lr, device=device.device) if compute.cuda_graph else None
        self.advance: Callable[..., Tensor] = Graphed(self._advance) if compute.cuda_graph else self._advance
        self.pending: list[Tensor] = []  # loss and accuracy of the steps since the last line of metrics
        self.metrics_size = 0

    @property
    def lr(self) -> float:
        """The learning rate of the step that comes."""
        training = self.config.training
        return learning_rate(training, self.step, 1 if training.iterations else self.steps_per_epoch)

    def update(self, *inputs: Tensor) -> None:
        """One step on what the mechanism takes."""
        self.last_lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_lr if self.lr_on_device is None else self.lr_on_device.fill_(self.last_lr)
        self.pending.append(self.advance(*inputs))
        self.step += 1

    def _advance(self, *inputs: Tensor) -> Tensor:
        """Every part's loss and gradient, the mean over the ranks, the optimiser.

        Returns loss, look-up accuracy and the gradient's norm, (3,).
        """
        count = self.config.training.accumulate
        results = []
        # The forward passes of a part run inside autocast, its backward pass outside, as PyTorch asks.
        parts = self.mechanism.parts(*inputs, count=count)
        while result := self._next(parts):
            (result.loss / count).backward()
            results.append(torch.stack((result.loss.detach(), result.accuracy)))
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        average(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # Each rank's BN saw its own images; the mean is what one rank with them all would have.
        average(self.statistics)
        return torch.cat((torch.stack(results).mean(dim=0), norm[None]))

    def inputs(self, batch: Batch) -> list[Tensor]:
        """What the mechanism takes of a batch."""
        if isinstance(self.mechanism, MemoryBank):
            return [*batch.views, batch.images.to(self.device.device, non_blocking=True)]
        return batch.views

    def _next(self, parts: Any) -> InfoNCE | None:
        with self.device.autocast():
            return next(parts, None)

    @property
    def epoch(self) -> float:
        """How often every image was seen."""
        return self.step / self.steps_per_epoch

    def knn_due(self) -> bool:
        """Whether the finished step is the first at or after a multiple of --knn-every, or the last."""
        every, batch = self.config.log.knn_every, self.config.training.batch_size
        if self.step == self.steps:
            return True
        if self.config.training.iterations:
            return self.step % every == 0
        images = every * len(self.source.train)
        return self.step * batch // images > (self.step - 1) * batch // images

    def knn(self) -> float:
        """kNN accuracy of the query encoder's features, in 0..1."""
        log_, workers = self.config.log, self.config.compute.workers
        backbone = self.mechanism.query.backbone
        batch = max(256, self.config.training.batch_size)
        return evaluate_knn(
            backbone, self.source, self.centre, self.device, log_.knn_k, log_.knn_temperature, batch, workers
        )

    def pending_values(self) -> Tensor:
        """Loss, look-up accuracy and gradient norm of the pending steps, (steps, 3), means over the ranks."""
        values = torch.stack(self.pending) if self.pending else torch.empty(0, 3)
        average([values])
        return values

    def read_pending(self) -> "Reading":
        """The same, on its way to the CPU; they are pending no more."""
        values = self.pending_values()
        self.pending.clear()
        reading = Reading(self.step, self.epoch, self.last_lr, values.to("cpu", non_blocking=True), None)
        if values.is_cuda:
            reading = reading._replace(arrived=torch.cuda.Event())
            reading.arrived.record()  # type: ignore[union-attr]
        return reading

    def mean(self, reading: "Reading") -> dict[str, float]:
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
        good = self.run.newest()
        stands = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
        raise Diverged(f"{what}: a lower --lr or --precision fp32 may help; {stands}", step)

    def require_finite(self) -> Tensor:
        """The pending values, (steps, 3). Stops the run where they, or the weights, are not finite."""
        pending = self.pending_values()
        self._check(pending, self.step)
        if not torch.stack([p.isfinite().all() for p in self.parameters]).all():
            self._diverged(f"the weights after step {self.step} are not finite", self.step)
        return pending

    def save(self) -> None:
        """Writes the checkpoint of the finished step, unless something in it is not finite."""
        pending = self.require_finite()
        if rank() != 0:
            return
        state = {
            "step": self.step,
            "mechanism": self.mechanism.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pending": pending,
            "metrics_size": self.metrics_size,
        }
        self.run.save(self.step, state, self.config.log.keep_checkpoints)

    def load(self) -> None:
        """Continues from the newest checkpoint that is whole, if one was written."""
        path = self.run.newest()
        if path is None:
            return
        state = read_checkpoint(path)
        try:
            self.mechanism.load_state_dict(state["mechanism"])
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            raise UserError(f"{path}: is of another architecture: {lines[0]}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.metrics_size = state["step"], state["metrics_size"]
        if state["pending"].shape[1:] == self.pending_values().shape[1:]:  # 0.1.0 had fewer numbers
            self.pending = list(state["pending"].to(self.device.device))
        log.info("continuing %s after step %d", self.run.path, self.step)
