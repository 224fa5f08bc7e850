"""How views of images reach the device."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from moco.data.dataset import Encoded, ImageSet, InMemory
from moco.data.loading.crops import CropBatch, CropDataset, Request
from moco.data.loading.gpu import EncodedDataset, decode_and_crop, faster_on_gpu
from moco.data.order import Indices, Plan, StreamOrder, training_plan
from moco.data.sources.shards import Shards
from moco.data.stream import STREAMS, read_streams
from moco.runtime.device import worker_processes
from moco.runtime.errors import UserError
from moco.runtime.signals import ignore_signals
from moco.views import Views

Decoder = Literal["auto", "cpu", "gpu"]
_DRAWN_TOGETHER, _DRAWN_TOGETHER_ON_GPU = 2**19, 2**23
"""Pixels of the views that are drawn at once, at most, if that is more than one batch; a view counts as 16 x 16, as
what decides on its crop and colours takes memory too."""


class Batch(NamedTuple):
    images: Tensor
    """int64 (n,), on the CPU: the images' numbers; another than was planned replaces an unreadable one."""
    views: list[Tensor]
    """Each (n, 3, size, size), normalised, on the device."""


class Loader:
    """Brings views of a set's images to the device.

    Images in memory are on the device, and everything happens there. Encoded ones are decoded, once for all
    views, and cropped by `workers` processes, which send uint8 crops; photometric work is done on the device.

    Args:
        images: the set.
        views: which views of them.
        device: where the views are wanted.
        workers: processes that decode; 0: threads of this one; None: as `worker_processes` has it.
        decoder: where JPEGs are decoded: cpu, by the workers; gpu, by the device; auto, on a GPU whichever is faster.
    """

    def __init__(
        self, images: ImageSet, views: Views, device: torch.device, workers: int | None = 0, decoder: Decoder = "cpu"
    ) -> None:
        self.images = images.to(device)
        self.views, self.device, self.decoder = views, device, decoder
        self.workers = worker_processes(workers, device)

    def of_size(self, size: int) -> "Loader":
        """The same with views of so many pixels in height and width."""
        other, other.views = copy.copy(self), copy.copy(self.views)
        other.views.size = size
        return other

    def agree_on_unreadable(self) -> None:
        """Counts the images found unreadable on all ranks; called on all of them. Raises UserError if too many."""
        self.images.agree_on_unreadable()

    def training(self, batch: int, seed: int, start: int, stop: int, streams: int = STREAMS) -> Iterator[Batch]:
        """This rank's share of the batches of steps start..stop-1; remote shards are read as so many streams.

        Raises UserError when too many images cannot be read.
        """
        images = self.images
        if images.random_access:
            yield from self.batches(training_plan(len(images), batch, seed, start, stop))
            return
        assert isinstance(images, Encoded)
        assert isinstance(images.reader, Shards)
        order = StreamOrder(torch.from_numpy(images.reader.counts), batch, streams, seed)
        with closing(read_streams(images.reader, order, start, stop)) as batches:
            yield from self._decoded(images, (Request(*read) for read in batches))

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The batches of the plan. Raises UserError when too many images cannot be read."""
        images = self.images
        if isinstance(images, Encoded):
            yield from self._decoded(images, map(Request, plan))
            return
        assert isinstance(images, InMemory)
        for some in self._drawn_together(plan):
            epoch, index = (torch.cat(own) for own in zip(*some, strict=True))
            views = self.views(images.at(index), index, epoch)
            sizes = [len(one.images) for one in some]
            for one, *own in zip(some, *(view.split(sizes) for view in views), strict=True):
                yield Batch(one.images, own)

    def _drawn_together(self, plan: Plan) -> Iterator[list[Indices]]:
        """Batches in a row, few where they are large: of small ones, most of the time went into starting operations.

        As views are pure functions, it changes none of them.
        """
        batches, most = iter(plan), _DRAWN_TOGETHER if self.device.type == "cpu" else _DRAWN_TOGETHER_ON_GPU
        for first in batches:
            pixels = len(first.images) * self.views.count * max(self.views.size, 16) ** 2
            yield [first, *islice(batches, max(1, most // pixels) - 1)]

    def _decoded(self, images: Encoded, requests: Iterable[Request]) -> Iterator[Batch]:
        """The batches that are requested, each made by one worker."""
        if self.decoder == "auto":
            on_gpu = faster_on_gpu(images, self.views, self.device, self.workers)
            self.decoder = "gpu" if on_gpu else "cpu"
        worker = EncodedDataset if self.decoder == "gpu" else CropDataset
        loader = DataLoader(
            worker(images, self.views),
            batch_sampler=requests,  # type: ignore[arg-type]  # any iterable; its items go to the dataset as they are
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            # Of its own: the run's generator, from which dropout draws, must not depend on how often one is made.
            generator=torch.Generator(),
            worker_init_fn=ignore_signals,
        )
        for read in self._ahead(self._checked(images, loader)):
            yield Batch(read.images, self.views.photometric(read.crops, read.parameters))

    def _checked(self, images: Encoded, loader: Any) -> Iterator[CropBatch]:
        for read in loader:
            if isinstance(read, UserError):
                raise read
            if self.decoder == "gpu":
                read = decode_and_crop(read, self.views.size, self.device)
            images.report(read.errors)
            yield read

    def _ahead(self, reads: Iterator[CropBatch]) -> Iterator[CropBatch]:
        """Moves the crops to the device. A GPU copies them while it works on the batch before; nothing waits for it."""
        if self.device.type != "cuda":
            yield from reads
            return
        copies = torch.cuda.Stream(self.device)
        for read in reads:
            with torch.cuda.stream(copies):
                moved = read._replace(crops=read.crops.to(self.device, non_blocking=True))
            torch.cuda.current_stream(self.device).wait_stream(copies)
            moved.crops.record_stream(torch.cuda.current_stream(self.device))
            yield moved


def _as_it_is(batch: Any) -> Any:
    return batch
