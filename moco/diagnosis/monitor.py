"""The monitor: is it working? What the loss does not show, measured every so many steps on a fixed probe batch.

The probe is the views of the first step's images. What is measured of it changes nothing in the run, and is the same
when the run is continued: BN statistics and the generator's state are put back.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco.contrast import EndToEnd, MemoryBank, MoCo, MoCoV3
from moco.contrast.batchnorm import random_bits
from moco.contrast.collectives import gather, world_size
from moco.data import Batch, Loader, training_plan
from moco.data.loading.loader import Decoder
from moco.runs.config import Config
from moco.runtime.device import Device

BINS = 40
"""Of the similarity histograms, over -1..1."""
_SHOWN = 4096
"""Of each query's negatives at most so many are in a histogram, and compared at once."""
_RECENT = 2**20
"""Places in the order of the images that are compared at once: of a larger queue the newest so many."""


class Monitor:
    """Measures a run's mechanism without changing it.

    Args:
        config: the run's.
        mechanism: which it trains; the figures of a queue are of MoCo alone.
        loader: the run's views.
        images: how many the data set has.
        device: the run's.
    """

    def __init__(self, config: Config, mechanism: Any, loader: Loader, images: int, device: Device) -> None:
        self.config, self.mechanism, self.loader, self.images, self.device = config, mechanism, loader, images, device
        self.streamed = not loader.images.random_access
        self._drawn: dict[int, Batch] = {}
        training, group = config.training, config.contrast.bn_group
        self.keys_per_step: int = mechanism.keys_per_step(training.batch_size)
        self.bn_groups = training.batch_size // (
            group or training.batch_size // (world_size() * training.accumulation_steps)
        )
        normalised = any(isinstance(module, _BatchNorm) for module in mechanism.modules())
        self.shuffles = isinstance(mechanism, MoCo | EndToEnd) and normalised

    def probe(self, step: int = 0) -> Batch:
        """This rank's share of the first step's images, or of the second's; drawn once."""
        if step not in self._drawn:
            batch = self._of_stream(step) if self.streamed else self._batch_of(step)
            self._drawn[step] = batch._replace(views=[view.clone() for view in batch.views])
        return self._drawn[step]

    def _loader(self, workers: int | None = 0, decoder: Decoder = "cpu") -> Loader:
        """Of the run's images, two views each."""
        views = copy.copy(self.loader.views)
        if views.count == 1:  # of a memory bank, in whose place another view gives the alignment
            views.pretexts *= 2
        return Loader(self.loader.images, views, self.device.device, workers, decoder)

    def _batch_of(self, step: int) -> Batch:
        """A step's batch, drawn again: its views are functions of its place. Not of streams, which are read through."""
        training = self.config.training
        plan = training_plan(self.images, training.batch_size, training.seed, step, step + 1)
        # In this process: workers take longer to start than a batch to decode.
        return next(self._loader().batches(plan))

    def _of_stream(self, step: int) -> Batch:
        training, streams = self.config.training, self.config.data.shard_streams
        loader = self._loader(self.loader.workers, self.loader.decoder)
        batches = loader.training(training.batch_size, training.seed, 0, step + 1, streams)
        return next(islice(batches, step, None))

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, Any]:
        """What is recorded after a step, as the table in docs/monitor.md explains."""
        with _untouched(self.mechanism, self.device):
            (features, outputs), (other_features, others) = (self._forward(view) for view in self.probe().views)
            q, features = F.normalize(outputs, dim=1), torch.cat((features, other_features))
            measured: dict[str, Any] = {
                "alignment": alignment(q, F.normalize(others, dim=1)),
                "uniformity": uniformity(q),
                "rank": effective_rank(features),
                "rank_of": float(min(features.shape)),
                "feature_std": feature_std(q),
            }
            measured |= self._similarities(
                step, q if not isinstance(self.mechanism, MoCoV3) else self._predict(outputs)
            )
            if isinstance(self.mechanism, MoCo):
                measured |= self._queue(step)
        return {name: value for name, value in measured.items() if value is not None}

    def _forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Features and the head's outputs of all ranks' probes, in as many micro-batches as in training."""
        found = []
        with self.device.autocast():
            for chunk in view.chunk(self.config.training.accumulation_steps):
                outputs = [chunk]
                for module in self.mechanism.query.children():  # one by one, so that nothing is compiled for it
                    outputs.append(module(outputs[-1]))
                found.append((outputs[1].float(), outputs[-1].float()))
        features, ends = zip(*found, strict=True)
        return gather(torch.cat(features)), gather(torch.cat(ends))

    def _predict(self, outputs: Tensor) -> Tensor:
        """MoCo v3's queries."""
        with self.device.autocast():
            for module in self.mechanism.predictor.children():
                outputs = module(outputs)
        return F.normalize(outputs.float(), dim=1)

    def _similarities(self, step: int, q: Tensor) -> dict[str, Any]:
        """Cosines of the probe's queries with their positives and negatives; what shared BN statistics add to them."""
        queued = self._queued(step, q) if isinstance(self.mechanism, MoCo) else None
        pairs = {apart: self._pairs(q, apart, queued) for apart in ((False, True) if self.shuffles else (False,))}
        as_trained = self.shuffles and self.mechanism.shuffle and self.bn_groups > 1
        positives, negatives, _ = pairs[as_trained]
        measured: dict[str, Any] = {
            "positive_histogram": histogram(positives),
            "negative_histogram": histogram(negatives),
        }
        if self.shuffles:
            shared, apart = (float((own > largest).float().mean()) for own, _, largest in pairs.values())
            measured |= {"bn_leak": shared - apart, "bn_groups": self.bn_groups}
        return measured

    def _queued(self, step: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of queries with `_SHOWN` keys of the queue, of images once there are any, and the largest of all."""
        blocks = self.mechanism.queue.keys.split(_SHOWN)
        largest = torch.stack([(q @ keys.T).amax(dim=1) for keys in blocks]).amax(dim=0)
        return q @ blocks[0][: self._real(step) or _SHOWN].T, largest

    def _pairs(self, q: Tensor, apart: bool, queued: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines of queries with their positives (n,), with up to `_SHOWN` negatives, and the largest of all (n,)."""
        mechanism, (images, views) = self.mechanism, self.probe()
        if isinstance(mechanism, MemoryBank):
            own, drawn = gather(images.to(q.device)), mechanism.draw()[:_SHOWN]
            negatives = (q @ mechanism.vectors[drawn].T).masked_fill(drawn == own[:, None], math.nan)
            return (q * mechanism.vectors[own]).sum(dim=1), negatives, negatives.amax(dim=1)
        keys = self._encode(views[-1], apart)
        if queued is not None:
            return (q * keys).sum(dim=1), *queued
        cosines = q @ keys.T
        others = ~torch.eye(len(q), dtype=torch.bool, device=q.device)
        negatives = cosines[others].view(len(q), -1)
        return cosines.diagonal(), negatives[:, :_SHOWN], negatives.amax(dim=1)

    def _encode(self, view: Tensor, apart: bool) -> Tensor:
        """Keys of the probe, in other BN groups than their queries or in the same."""
        if apart and self.bn_groups == 1:
            return self._among_others(view)
        if not self.shuffles:
            return self._keys(view)
        before, self.mechanism.shuffle = self.mechanism.shuffle, apart
        keys = self._keys(view)
        self.mechanism.shuffle = before
        return keys

    def _keys(self, view: Tensor, enqueued: int | None = None) -> Tensor:
        """As in training, in as many micro-batches."""
        with self.device.autocast():
            if isinstance(self.mechanism, MoCoV3):
                return gather(F.normalize(self.mechanism.key(view).float(), dim=1))
            if isinstance(self.mechanism, MoCo):
                return self.mechanism.encode_keys(view, self.config.training.accumulation_steps, enqueued=enqueued)
            keys: Tensor = self.mechanism.encode_keys(view)
            return keys

    def _among_others(self, view: Tensor) -> Tensor:
        """One BN group has nothing to shuffle: each quarter of its keys is encoded among images of another step."""
        other, place = self.probe(1).views[-1], torch.arange(len(view), device=view.device)
        quarter = place % 4
        found = [self._encode(torch.where((quarter == i).view(-1, 1, 1, 1), view, other), False) for i in range(4)]
        return torch.stack(found)[quarter, place]

    def _real(self, step: int) -> int:
        """How many keys of the queue are of images; the others are those that it begins with."""
        return min(step * self.keys_per_step, self.config.contrast.queue_size)

    def _queue(self, step: int) -> dict[str, Any]:
        """The metrics of the queue."""
        queue, per_step = self.mechanism.queue, self.keys_per_step
        real = self._real(step)
        return {
            "queue_real": real / len(queue.keys),
            # Of the keys i = 0, 1, ... from the newest, each is i // per_step steps old.
            "key_age": max(0.0, (real / per_step - 1) / 2),
            "key_drift": self._drift(step, per_step, real),
            "queue_share": min(1.0, real / (per_step / self.config.training.batch_size) / self.images),
            "same_image": self._same_image(step, real // per_step),
        }

    def _drift(self, step: int, per_step: int, real: int) -> float | None:
        """The mean cosine between the oldest whole step's keys in the queue and the same views encoded now."""
        oldest = step - real // per_step
        if self.streamed or real < per_step:
            return None
        queue = self.mechanism.queue
        views = self._batch_of(oldest).views
        now = self._keys(views[-1], enqueued=oldest * per_step)  # in the same order, and so in the same BN groups
        stored = torch.arange(oldest * per_step, oldest * per_step + len(now), device=now.device) % len(queue.keys)
        return float((queue.keys[stored] * now).sum(dim=1).mean())

    def _same_image(self, step: int, steps_back: int) -> float | None:
        """How many keys of the queue are of a query's own image, in the mean over a step's queries."""
        if self.streamed:
            return None
        training, views = self.config.training, 2 if self.mechanism.symmetric else 1
        steps_back = min(steps_back, _RECENT // training.batch_size)
        plan = training_plan(self.images, training.batch_size, training.seed, step - steps_back, step + 1)
        *queued, own = (gather(indices.images.to(self.device.device)) for indices in plan)
        if not queued:
            return 0.0
        there = torch.cat(queued).sort().values
        counts = torch.searchsorted(there, own, right=True) - torch.searchsorted(there, own)
        return views * float(counts.float().mean())


@contextmanager
def _untouched(mechanism: nn.Module, device: Device) -> Iterator[None]:
    """Puts back what a forward pass in training changes besides its results."""
    large = ("queue.keys", "vectors")  # which measuring does not touch
    buffers = {name: buffer.clone() for name, buffer in mechanism.named_buffers() if name not in large}
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
    """log mean exp(-2 |x - y|^2) over all pairs of unit vectors (n, dim): 0 collapsed, near -4 uniform on the sphere.

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


def feature_std(features: Tensor) -> float:
    """Standard deviation of each dimension of unit vectors (n, dim), mean, times sqrt(dim): 1 uniform, 0 collapsed.

    Chen and He 2021 (SimSiam), whose figure is this one without the factor.
    """
    return float(features.std(dim=0).mean() * math.sqrt(features.shape[1]))


def histogram(similarities: Tensor) -> list[int]:
    """Counts of cosines in `BINS` equal bins over -1..1, without those that are nan; a sample of at most a million."""
    values = similarities.flatten()
    if len(values) > 2**20:
        chosen = random_bits(2**20, torch.zeros((), dtype=torch.int64, device=values.device)) % len(values)
        values = values[chosen]
    counts: list[int] = torch.histc(values.float(), BINS, -1, 1).long().tolist()
    return counts
