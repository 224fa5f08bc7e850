"""Training samples, step by step: which images a step takes is a pure function of (seed, step)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from moco.data.order import training_plan
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather_objects
from moco.runtime.signals import ignore_signals
from moco.transfer.task import Read

_TRIES = 20
"""Images in a row that may be unreadable."""


class Sample(NamedTuple):
    """What was read for one place of a batch, and what could not be: messages by image number."""

    content: Any
    unreadable: dict[int, str]


class _Samples(Dataset[Sample]):
    """Reads (epoch, image); in the place of one that cannot be read comes the next one that can."""

    def __init__(self, read: Read, images: int) -> None:
        self.read, self.images = read, images

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        unreadable: dict[int, str] = {}
        for shift in range(min(_TRIES, self.images)):
            number = (index + shift) % self.images
            try:
                return Sample(self.read(epoch, number), unreadable)
            except UserError as error:
                unreadable[number] = str(error)
        return Sample(None, unreadable)


class Unreadable:
    """The training images that could not be read."""

    def __init__(self, images: int, max_bad: float) -> None:
        self.images, self.max_bad = images, max_bad
        self.messages: dict[int, str] = {}
        self.none: str | None = None
        """Why no sample could be read for a place."""

    def add(self, sample: Sample) -> dict[int, str]:
        """Those of a sample that are new."""
        new = {number: why for number, why in sample.unreadable.items() if number not in self.messages}
        self.messages |= new
        return new

    def agree(self) -> None:
        """Counts over all ranks; called on all of them. Raises UserError on all if there are too many."""
        found: dict[int, str] = {}
        for of_rank in gather_objects(self.messages):
            found |= of_rank
        if len(found) > self.max_bad * self.images:
            first = found[min(found)]
            error = UserError(
                f"{len(found)} of {self.images} training images cannot be read, more than --max-bad "
                f"{self.max_bad:g} (the first: {first})"
            )
            error.agreed = True
            raise error


def batches(
    read: Read, images: int, batch: int, seed: int, start: int, stop: int, workers: int, pinned: bool = False
) -> Iterator[list[Sample]]:
    """This rank's share of the samples of steps start .. stop-1, read ahead by worker processes."""
    plan = (
        list(zip(indices.epoch.tolist(), indices.images.tolist(), strict=True))
        for indices in training_plan(images, batch, seed, start, stop)
    )
    loader: DataLoader[Sample] = DataLoader(
        _Samples(read, images),
        batch_sampler=plan,  # any iterable; its items go to the dataset as they are
        num_workers=workers,
        collate_fn=_as_they_are,
        pin_memory=pinned,
        generator=torch.Generator(),  # of its own: the run's must not depend on how often one is made
        worker_init_fn=ignore_signals,
    )
    yield from loader


def _as_they_are(samples: Sequence[Sample]) -> list[Sample]:
    return list(samples)
