"""How views of images reach the device."""

import signal
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from moco.data.dataset import Encoded, ImageSet, InMemory
from moco.data.loading.crops import CropBatch, CropDataset, ViewDataset
from moco.data.loading.gpu import EncodedDataset, decode_and_crop, faster_on_gpu
from moco.data.order import Plan, training_plan
from moco.data.stream import LANES, Streamed
from moco.runtime.errors import UserError
from moco.views import Parameters, Views

Decoder = Literal["auto", "cpu", "gpu"]


class Batch(NamedTuple):
    images: Tensor
    """int64 (n,), on the CPU: the images' numbers; another than was planned replaces an unreadable one."""
    views: list[Tensor]
    """Each (n, 3, size, size), normalised, on the device."""


class Loader:
    """Brings views of a set's images to the device.

    Images in memory are on the device, and everything happens there. Encoded ones are decoded, once for all
    views, and cropped by `workers` processes, which send uint8 crops; photometric work is done on the device, or by the
    workers where that is a CPU.

    Args:
        images: the set.
        views: which views of them.
        device: where the views are wanted.
        workers: processes that decode; 0 decodes in this one.
        decoder: where JPEGs are decoded: cpu, by the workers; gpu, by the device; auto, on a GPU whichever is faster.
    """

    def __init__(
        self, images: ImageSet, views: Views, device: torch.device, workers: int = 0, decoder: Decoder = "cpu"
    ) -> None:
        self.images = images.to(device)
        self.views, self.device, self.workers, self.decoder = views, device, workers, decoder

    def agree_on_unreadable(self) -> None:
        """Counts the images found unreadable on all ranks; called on all of them. Raises UserError if too many."""
        self.images.agree_on_unreadable()

    def training(self, batch: int, seed: int, start: int, stop: int, lanes: int = LANES) -> Iterator[Batch]:
        """This rank's share of the batches of steps start..stop-1; remote shards are read as so many streams.

        Raises UserError when too many images cannot be read.
        """
        if not self.images.random_access:
            assert isinstance(self.images, Encoded)
            streamed = Streamed(self.images, batch, seed, self.workers, lanes)
            yield from self._decoded(streamed.images, streamed.plan(start, stop), streamed.parts)
        else:
            yield from self.batches(training_plan(len(self.images), batch, seed, start, stop))

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The batches of the plan. Raises UserError when too many images cannot be read."""
        images = self.images
        if isinstance(images, Encoded):
            yield from self._decoded(images, plan)
            return
        assert isinstance(images, InMemory)
        for epoch, index in plan:
            yield Batch(index, self.views(images.images[index.to(self.device)], index, epoch))

    def _decoded(self, images: Encoded, plan: Plan, parts: int = 1) -> Iterator[Batch]:
        """The batches of a plan that asks for each in so many parts; each worker gets the same part of every batch."""
        if self.decoder == "auto":
            on_gpu = self.device.type == "cuda" and faster_on_gpu(images, self.views, self.device, self.workers)
            self.decoder = "gpu" if on_gpu else "cpu"
        finished = self.device.type == "cpu" and self.decoder == "cpu" and self.workers > 0 and parts == 1
        worker = EncodedDataset if self.decoder == "gpu" else ViewDataset if finished else CropDataset
        loader = DataLoader(
            worker(images, self.views),
            batch_sampler=plan,  # type: ignore[arg-type]  # any iterable; its items go to the dataset as they are
            num_workers=self.workers if parts == 1 else parts,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            # Of its own: the run's generator, from which dropout draws, must not depend on how often one is made.
            generator=torch.Generator(),
            worker_init_fn=_ignore_signals,
        )
        for read in self._ahead(_joined(self._checked(images, loader), parts, self.views.count)):
            views = read.views or self.views.photometric(read.crops, read.parameters)
            yield Batch(read.images, views)

    def _checked(self, images: Encoded, loader: Any) -> Iterator[CropBatch]:
        for read in loader:
            if isinstance(read, UserError):
                raise read
            if self.decoder == "gpu":
                read = decode_and_crop(read, self.views.size, self.device)
            images.report(read.errors)
            yield read

    def _ahead(self, reads: Iterator[CropBatch]) -> Iterator[CropBatch]:
        """Moves the crops to the device. On a GPU the next batch is on its way while this one is worked on."""
        if self.device.type != "cuda":
            yield from reads
            return
        copies, waiting = torch.cuda.Stream(self.device), None
        for read in reads:
            with torch.cuda.stream(copies):
                moved = read._replace(crops=read.crops.to(self.device, non_blocking=True))
            if waiting is not None:
                yield waiting
            torch.cuda.current_stream(self.device).wait_stream(copies)
            moved.crops.record_stream(torch.cuda.current_stream(self.device))
            waiting = moved
        if waiting is not None:
            yield waiting


def _joined(reads: Iterator[CropBatch], parts: int, views: int) -> Iterator[CropBatch]:
    """Every so many parts as one batch."""
    if parts == 1:
        yield from reads
        return
    for first in reads:
        batch = [first, *(next(reads) for _ in range(parts - 1))]

        def by_view(fields: list[Tensor]) -> Tensor:
            return torch.cat([field.unflatten(0, (views, -1)) for field in fields], dim=1).flatten(0, 1)

        yield CropBatch(
            torch.cat([read.images for read in batch]),
            by_view([read.crops for read in batch]),
            Parameters(*(by_view(list(fields)) for fields in zip(*(read.parameters for read in batch), strict=True))),
            {},
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_signals(worker: int) -> None:
    """torchrun and terminals signal workers too, which serve until the run has stopped by itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
