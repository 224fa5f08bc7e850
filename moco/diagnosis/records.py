"""What a run has recorded, as the doctor reads it, without PyTorch."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from moco.runs.config import Config


@dataclass(frozen=True)
class Records:
    """What a run has recorded so far."""

    config: Config
    lines: list[dict[str, Any]]
    """metrics.jsonl."""
    timing: list[dict[str, Any]]

    def series(self, name: str) -> list[tuple[int, float]]:
        """Step and value, in the order of the steps."""
        return [(line["step"], line[name]) for line in self.lines if isinstance(line.get(name), int | float)]

    def last(self, name: str) -> float | None:
        found = self.series(name)
        return found[-1][1] if found else None

    def smooth(self, name: str) -> list[tuple[int, float]]:
        """The series in about twenty means, the last of the newest values, so that a batch's luck is no finding."""
        found = self.series(name)
        size = max(1, len(found) // 20)
        groups = [found[i : i + size] for i in range(len(found) % size, len(found), size)]
        return [(group[-1][0], statistics.fmean(value for _, value in group)) for group in groups]

    @property
    def step(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def steps(self) -> float:
        """Of the whole run."""
        training = self.config.training
        of_epochs = training.epochs * self.steps_per_epoch
        return training.iterations or (math.ceil(of_epochs - 1e-6) if of_epochs < math.inf else math.inf)

    @property
    def moco(self) -> bool:
        return self.config.contrast.mechanism == "moco"

    # The facts are in the first line of metrics.jsonl. 0.1.0 did not record them; of MoCo they follow from the config.

    @property
    def chance(self) -> float:
        """The loss at chance, in nats; infinite if it is not known."""
        of_moco = math.log(self.config.contrast.queue_size + 1) if self.moco else math.inf
        return self._fact("chance_loss", of_moco)

    @property
    def keys_per_step(self) -> float:
        return self._fact("keys_per_step", self.config.training.batch_size * (1 + self.config.contrast.symmetric))

    @property
    def images(self) -> float:
        """How many the data set has; infinite if it is not known."""
        epochs = next((line["epoch"] / line["step"] for line in reversed(self.lines) if line.get("epoch")), None)
        return self._fact("images", math.inf if epochs is None else self.config.training.batch_size / epochs)

    def _fact(self, name: str, otherwise: float) -> float:
        return next((value for _, value in self.series(name)), otherwise)

    @property
    def steps_per_epoch(self) -> float:
        return self.images / self.config.training.batch_size

    @property
    def filled_at(self) -> float:
        """The step from which the dictionary holds what images gave, and nothing of its random start."""
        if self.config.contrast.mechanism == "memory-bank":
            kept = self.config.contrast.bank_momentum  # of a vector at an epoch; a tenth of its start is little
            epochs = 1 if kept == 0 else math.inf if kept == 1 else math.ceil(math.log(0.1) / math.log(kept))
            return epochs * self.steps_per_epoch
        return math.ceil(self.config.contrast.queue_size / self.keys_per_step) if self.moco else 0

    @property
    def warm(self) -> bool:
        """Whether the loss is meaningful: the dictionary full and the warm-up over, for a hundredth of the steps."""
        training = self.config.training
        warm_up = training.warmup if training.iterations else training.warmup * self.steps_per_epoch
        return self.step >= max(self.filled_at, warm_up) + max(50, self.steps / 100) or self.step >= self.steps
