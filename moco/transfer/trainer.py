"""A transfer run in progress: its state, one step, its checkpoint."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from moco.runs.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from moco.runs.folder import RunFolder
from moco.runtime.data_parallel import data_parallel
from moco.runtime.device import Device, worker_processes
from moco.runtime.errors import UserError
from moco.runtime.ranks import average, on_main, rank, world_size
from moco.transfer.config import TransferConfig
from moco.transfer.detection.precise_bn import precise_bn
from moco.transfer.detection.solver import build_sgd, cosine, learning_rate
from moco.transfer.loading import Sample, Unreadable, batches
from moco.transfer.task import Losses, Measured, Task, WholeBatches

log = logging.getLogger("moco")
_PRECISE_BN_SEED = 0x5EED
"""Added to the seed: BN's statistics are computed over other batches than those that training takes."""


class Trainer:
    """A transfer run in progress. Its state is the step, the weights and the optimiser.

    Random numbers of a step are drawn from (seed, step, rank), so a continued run draws what it would have drawn.
    """

    def __init__(self, config: TransferConfig, task: Task, run: RunFolder[Any], device: Device) -> None:
        self.config, self.task, self.run, self.device = config, task, run, device
        self.model = device.place(task.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        training = config.training
        self.model.checkpointing = training.checkpointing == "yes"
        self.optimizer = build_sgd(self.model, training.lr, training.sgd_momentum, training.weight_decay)
        self.losses = Losses(task, device.device)
        self.distributed = data_parallel(self.model, self.parameters) if world_size() > 1 else None
        self.unreadable = Unreadable(task.images, config.data.max_bad)
        self.step, self.metrics_size, self.last_lr = 0, 0, 0.0
        self.pending: list[dict[str, Tensor]] = []
        """Losses of the steps since the last line of metrics.jsonl."""

    def seed_step(self) -> None:
        """Seeds the generators for the step that comes, for this rank."""
        number = (self.step * world_size() + rank()) * 0x9E3779B1
        torch.manual_seed((self.config.training.seed * 0x100000001B3 + number) % 2**63)

    def batches(self, start: int, stop: int, seed: int) -> Iterator[list[Sample]]:
        """This rank's samples of some steps; of a task that makes whole batches, one sample a step."""
        if isinstance(self.task, WholeBatches):
            made = self.task.batches(start, stop, self.device, self.config.compute.workers)
            return ([Sample(batch, {})] for batch in made)
        assert self.task.read is not None
        training = self.config.training
        workers = worker_processes(self.config.compute.workers, self.device.device)
        pinned = self.device.device.type == "cuda"
        return batches(self.task.read, self.task.images, training.batch_size, seed, start, stop, workers, pinned)

    def contents(self, samples: list[Sample]) -> list[Any]:
        """What was read. What was not is logged, each image once; UserError if there is nothing in a place."""
        for sample in samples:
            for number, why in self.unreadable.add(sample).items():
                log.warning("image %d cannot be read, the next one takes its place: %s", number, why)
            if sample.content is None:
                first = next(iter(sample.unreadable.values()))
                raise UserError(
                    f"{len(sample.unreadable)} training images in a row cannot be read (the first: {first})"
                )
        return [sample.content for sample in samples]

    def update(self, samples: list[Sample]) -> None:
        """One step on this rank's share of a batch."""
        training = self.config.training
        contents = self.contents(samples)
        if training.schedule == "cosine":
            self.last_lr = cosine(self.step, training.lr, training.iterations, training.warmup)
        else:
            self.last_lr = learning_rate(self.step, training.lr, training.milestones, training.warmup, training.gamma)
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_lr
        losses = None
        may_checkpoint = training.checkpointing == "auto" and not self.model.checkpointing and world_size() == 1
        before = [buffer.clone() for buffer in self.model.buffers()] if may_checkpoint else []
        try:
            losses = self._backward(contents)
        except torch.OutOfMemoryError as error:
            if self.model.checkpointing:
                raise
            if not may_checkpoint:
                raise UserError(
                    f"step {self.step + 1} does not fit into memory: --checkpointing yes takes less, and changes no "
                    f"result; a smaller --batch-size would change BN ({str(error).partition('. ')[0]})"
                ) from error
        if losses is None:  # tried again out here, where the error no longer holds what the first try took
            log.info("step %d does not fit into memory: activation checkpointing from here on", self.step + 1)
            self.model.checkpointing = True
            self.optimizer.zero_grad()
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)  # BN's statistics, which the first try moved as far as it came
            losses = self._backward(contents)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.pending.append(losses)
        self.step += 1

    def _backward(self, contents: list[Any]) -> dict[str, Tensor]:
        """The gradient of a step. Returns the losses, their sum among them, without gradient."""
        self.seed_step()
        self.model.train()
        with self.device.autocast():
            forward = partial(self.losses, contents)
            losses: dict[str, Tensor] = forward() if self.distributed is None else self.distributed(forward)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()
        return {"loss": total.detach()} | {name: loss.detach() for name, loss in losses.items()}

    def take_pending(self) -> dict[str, float]:
        """The mean of each loss over the pending steps and the ranks; they are pending no more.

        Raises UserError on all ranks if the loss is not finite.
        """
        names = list(self.pending[0])
        values = torch.stack([torch.stack([losses[name].float() for name in names]) for losses in self.pending])
        average([values])
        self.pending.clear()
        mean = dict(zip(names, values.mean(0).tolist(), strict=True))
        if not values.isfinite().all():
            self._diverged("the loss")
        return mean

    def _diverged(self, what: str) -> None:
        good = on_main(lambda: newest_checkpoint(self.run))
        last = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
        error = UserError(
            f"{what} is not finite by step {self.step}: a lower --lr or --precision fp32 may help; {last}"
        )
        error.agreed = True
        raise error

    def evaluate(self) -> Measured:
        """Evaluates the model, BN's statistics computed anew before. Called on all ranks."""
        if self.task.precise_bn:
            samples = self.batches(0, self.task.precise_bn, self.config.training.seed + _PRECISE_BN_SEED)
            torch.manual_seed(self.config.training.seed)
            with self.device.autocast():
                precise_bn(self.losses, ((self.contents(each),) for each in samples))
        self.model.eval()
        return self.task.evaluate(self.device, self.config.compute.workers)

    def save(self) -> None:
        """Writes the checkpoint of the finished step. Called on all ranks; UserError if something is not finite."""
        if not torch.stack([p.isfinite().all() for p in self.parameters]).all():
            self._diverged("a weight")
        pending = self._pending_state()
        on_main(lambda: self._write(pending))

    def _pending_state(self) -> dict[str, Tensor]:
        """The losses of the pending steps, each (steps,), means over the ranks."""
        if not self.pending:
            return {}
        stacked = {name: torch.stack([each[name].float() for each in self.pending]) for name in self.pending[0]}
        average(list(stacked.values()))
        return {name: values.cpu() for name, values in stacked.items()}

    def _write(self, pending: dict[str, Tensor]) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pending": pending,
            "metrics_size": self.metrics_size,
            "facts": self.task.facts,
            "checkpointing": self.model.checkpointing,
        }
        save_checkpoint(self.run, self.step, state, self.config.log.keep_checkpoints)

    def load(self) -> bool:
        """Continues from the newest checkpoint that is whole, the main rank's, on all ranks. False if there is none."""
        found = on_main(lambda: None if (path := newest_checkpoint(self.run)) is None else read_checkpoint(path))
        if found is None:
            return False
        own = self.task.facts.get("classes", [])
        trained = found.get("facts", {}).get("classes", own)
        if trained != own:
            places = zip_longest(trained, own, fillvalue="none")
            number, names = next((n, pair) for n, pair in enumerate(places) if pair[0] != pair[1])
            raise UserError(
                f"{self.run.path}: its network does not fit {self.config.data.source}: it was trained for other "
                f"classes, or in another order (number {number} is {names[0]}, there {names[1]})"
            )
        try:
            self.model.load_state_dict(found["model"])
        except RuntimeError as error:
            raise UserError(
                f"{self.run.path}: its network does not fit {self.config.data.source}: it was trained for other classes"
            ) from error
        self.optimizer.load_state_dict(found["optimizer"])
        if self.config.training.checkpointing == "auto":  # once switched on, it stays: kernels may round otherwise
            self.model.checkpointing = found.get("checkpointing", False)
        self.step, self.metrics_size = found["step"], found["metrics_size"]
        pending = {name: values.to(self.device.device) for name, values in found["pending"].items()}
        steps = len(next(iter(pending.values()), ()))
        self.pending = [{name: values[step] for name, values in pending.items()} for step in range(steps)]
        log.info("continuing %s after step %d", self.run.path, self.step)
        return True
