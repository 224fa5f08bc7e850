"""The monitor: is it working? What a loss does not tell, measured now and then on a fixed probe.

The probe is the views of the first step's images. What is measured of it changes nothing in the run, and is the same
when the run is continued: BN statistics and the generator's state are put back.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.config import Config, keys_per_step
from moco.contrast import MoCo
from moco.contrast.ranks import gather, world_size
from moco.contrast.shuffle import random_bits
from moco.data import Batch, Encoded, Loader, training_plan
from moco.device import Device

BINS = 40
"""Of the similarity histograms, over -1..1."""
_RECENT = 2**20
"""Places in the order of the images that are compared at once: of a larger queue the newest so many."""


class Monitor:
    """Looks at a run's mechanism from outside.

    Args:
        config: the run's.
        mechanism: which it trains; the keys' figures are of MoCo alone, the others have none.
        loader: the run's views.
        images: how many the data set has.
        device: the run's.
    """

    def __init__(self, config: Config, mechanism: Any, loader: Loader, images: int, device: Device) -> None:
        self.config, self.mechanism, self.loader, self.images, self.device = config, mechanism, loader, images, device
        self.streamed = isinstance(loader.images, Encoded) and loader.images.reader.remote
        self._probe: list[Tensor] | None = None

    def probe(self) -> list[Tensor]:
        """The views of the first step's images, this rank's share; drawn once."""
        if self._probe is None:
            self._probe = [view.clone() for view in self._first_batch().views]
        return self._probe

    def _first_batch(self) -> Batch:
        if not self.streamed:
            return self._batch_of(0)
        training, lanes = self.config.training, self.config.data.lanes
        return next(self.loader.training(training.batch_size, training.seed, 0, 1, lanes))

    def _batch_of(self, step: int) -> Batch:
        """A step's batch, drawn again: its views are functions of its place. Not of streams, which are read through."""
        training = self.config.training
        # In this process: workers take longer to start than a batch to decode.
        loader = Loader(self.loader.images, self.loader.views, self.device.device)
        plan = training_plan(self.images, training.batch_size, training.seed, step, step + 1)
        return next(loader.batches(plan))

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, Any]:
        """What is recorded after a step, as the table in docs/monitor.md tells."""
        views = self.probe()
        with _untouched(self.mechanism, self.device), self.device.autocast():
            encoded = [self._forward(view) for view in views]
            features = torch.cat([found for found, _ in encoded])
            (_, q), (_, other) = encoded[0], encoded[-1]
            measured: dict[str, Any] = {
                "alignment": alignment(q, other) if len(views) > 1 else None,
                "uniformity": uniformity(q),
                "rank": effective_rank(features),
                "rank_of": float(min(features.shape)),
                "spread": spread(q),
            }
            if isinstance(self.mechanism, MoCo):
                measured |= self._keys(step, views, q)
        return {name: value for name, value in measured.items() if value is not None}

    def _forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Features and queries of all ranks' probes; part by part, so that nothing is compiled for it."""
        outputs = [view]
        for part in self.mechanism.query.children():
            outputs.append(part(outputs[-1]))
        return gather(outputs[1].float()), gather(F.normalize(outputs[-1].float(), dim=1))

    def _keys(self, step: int, views: list[Tensor], q: Tensor) -> dict[str, Any]:
        """What is told of the dictionary and of shuffling BN."""
        moco, queue = self.mechanism, self.mechanism.queue
        per_step = keys_per_step(self.config)
        real = min(step * per_step, len(queue.keys))
        # In one group, over one rank's images, BN has nothing to tell.
        leaks = self.config.contrast.bn_group is not None or world_size() > 1
        ways = (True, False) if leaks else (moco.shuffle,)
        positives = {shuffle: (q * self._encode(views[-1], shuffle)).sum(dim=1) for shuffle in ways}
        negatives = q @ queue.keys.T
        look_up = {shuffle: float((own > negatives.amax(dim=1)).float().mean()) for shuffle, own in positives.items()}
        return {
            "queue_real": real / len(queue.keys),
            # Of the keys i = 0, 1, ... from the newest, each is i // per_step steps old.
            "key_age": max(0.0, (real / per_step - 1) / 2),
            "key_drift": self._drift(step, per_step, real),
            "queue_share": min(1.0, real / (per_step / self.config.training.batch_size) / self.images),
            "same_image": self._same_image(step, real // per_step),
            "positive_histogram": histogram(positives[moco.shuffle]),
            "negative_histogram": histogram(negatives[:, : min(real, 4096) or 4096]),
            "bn_leak": look_up[False] - look_up[True] if leaks else None,
        }

    def _encode(self, view: Tensor, shuffle: bool) -> Tensor:
        before, self.mechanism.shuffle = self.mechanism.shuffle, shuffle
        keys: Tensor = self.mechanism.encode_keys(view)
        self.mechanism.shuffle = before
        return keys

    def _drift(self, step: int, per_step: int, real: int) -> float | None:
        """The mean cosine between the oldest whole step's keys in the queue and the same views encoded now."""
        oldest = step - real // per_step
        if self.streamed or real < per_step:
            return None
        moco, queue = self.mechanism, self.mechanism.queue
        views = self._batch_of(oldest).views
        enqueued = queue.enqueued.clone()
        queue.enqueued.fill_(oldest * per_step)  # so that they are encoded in the same order, in the same BN groups
        now = moco.encode_keys(views[-1])
        queue.enqueued.copy_(enqueued)
        stored = torch.arange(oldest * per_step, oldest * per_step + len(now), device=now.device) % len(queue.keys)
        return float((queue.keys[stored] * now).sum(dim=1).mean())

    def _same_image(self, step: int, steps_back: int) -> float | None:
        """How many keys of the queue are of a query's own image, in the mean over a step's queries."""
        if self.streamed:
            return None
        training, views = self.config.training, 2 if self.mechanism.symmetric else 1
        steps_back = min(steps_back, _RECENT // training.batch_size)
        plan = training_plan(self.images, training.batch_size, training.seed, step - steps_back, step + 1)
        *queued, own = (gather(asked.images.to(self.device.device)) for asked in plan)
        if not queued:
            return 0.0
        there = torch.cat(queued).sort().values
        counts = torch.searchsorted(there, own, right=True) - torch.searchsorted(there, own)
        return views * float(counts.float().mean())


@contextmanager
def _untouched(mechanism: nn.Module, device: Device) -> Iterator[None]:
    """Puts back what a forward pass in training changes besides its results."""
    buffers = {name: buffer.clone() for name, buffer in mechanism.named_buffers() if not name.startswith("queue.keys")}
    with torch.random.fork_rng([device.device] if device.device.type == "cuda" else []):
        yield
    for name, buffer in mechanism.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean squared distance of positive pairs, unit vectors (n, dim): 0 for equal views, 2 at random.

    Wang and Isola 2020, with alpha = 2.
    """
    return float((one - other).pow(2).sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """log mean exp(-2 |x - y|^2) over all pairs of unit vectors (n, dim): 0 collapsed, near -4 spread over the sphere.

    Wang and Isola 2020, with t = 2.
    """
    return float(torch.pdist(features).pow(2).mul(-2).exp().mean().log())


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of (n, dim), as shares: between 1 and min(n, dim).

    RankMe (Garrido et al. 2023).
    """
    few = features if len(features) <= features.shape[1] else features.T
    values = torch.linalg.eigvalsh(few.double() @ few.double().T).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-12) + 1e-7
    return math.exp(float(-(shares * shares.log()).sum()))


def spread(features: Tensor) -> float:
    """Standard deviation of each dimension of unit vectors (n, dim), mean, times sqrt(dim): 1 spread, 0 collapsed."""
    return float(features.std(dim=0).mean() * math.sqrt(features.shape[1]))


def histogram(similarities: Tensor) -> list[int]:
    """Counts of cosines in `BINS` equal bins over -1..1; a sample of at most a million."""
    values = similarities.flatten()
    if len(values) > 2**20:
        chosen = random_bits(2**20, torch.zeros((), dtype=torch.int64, device=values.device)) % len(values)
        values = values[chosen]
    counts: list[int] = torch.histc(values.float(), BINS, -1, 1).long().tolist()
    return counts
