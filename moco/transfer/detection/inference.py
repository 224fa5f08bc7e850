"""A detector on many images: worker processes read and resize them, the device detects."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from moco.evaluation.features import evaluating
from moco.runtime.device import Device, worker_processes
from moco.runtime.errors import UserError
from moco.runtime.signals import ignore_signals
from moco.transfer.detection.instances import Detections
from moco.transfer.detection.transforms import resize_image, resized

More = TypeVar("More")
Read = Callable[[int], tuple[Tensor, More]]
"""An image of this number, uint8 (3, height, width), and what else is wanted of it. Raises UserError if it is broken.

Worker processes call it, so what else it gives is best without tensors, each of which would hold a file open.
"""


class _Resized(Dataset[Any]):
    """Number, resized image, (height, width) before, and what else was read; of a broken one None and the error."""

    def __init__(self, read: Read[Any], side: int, maximum: int) -> None:
        self.read, self.side, self.maximum = read, side, maximum

    def __getitem__(self, number: int) -> tuple[int, Tensor | None, tuple[int, int], Any]:
        try:
            image, more = self.read(number)
        except UserError as error:
            return number, None, (0, 0), str(error)
        size = int(image.shape[1]), int(image.shape[2])
        return number, resize_image(image, *resized(*size, self.side, self.maximum)), size, more


@torch.no_grad()
def infer(
    detector: nn.Module,
    read: Read[More],
    numbers: Iterable[int],
    device: Device,
    broken: Callable[[int, str], object],
    *,
    side: int,
    maximum: int = 1333,
    batch: int = 1,
    workers: int | None = 0,
) -> Iterator[tuple[int, More, Detections]]:
    """Number, what else was read, and the detections of each image that can be read, in the pixels that it has.

    Args:
        detector: a `Detector` on the device. It is in evaluation mode meanwhile.
        numbers: of the images, in this order.
        broken: called with the number of an image that cannot be read, and what is wrong.
        side, maximum: the shorter side that images are resized to, and the most of the longer one, in pixels.
        batch: images detected at once. With 1 the numbers do not depend on which images come together, as those of
            several are padded to one size.
        workers: processes that read; 0: this one; None: as `worker_processes` has it.
    """
    loader = DataLoader(
        _Resized(read, side, maximum),
        batch_size=batch,
        sampler=numbers,
        num_workers=worker_processes(workers, device.device),
        collate_fn=_as_it_is,
        pin_memory=device.device.type == "cuda",
        # Of its own: the run's generator must not depend on how often one is evaluated.
        generator=torch.Generator(),
        worker_init_fn=ignore_signals,
    )
    with evaluating(detector):
        for group in loader:
            images, sizes, others = [], [], []
            for number, image, size, more in group:
                if image is None:
                    broken(number, more)
                    continue
                images.append(image.to(device.device, non_blocking=True))
                sizes.append(size)
                others.append((number, more))
            if images:
                with device.autocast():
                    found = detector(images, sizes=sizes)
                for (number, more), each in zip(others, found, strict=True):
                    yield number, more, each


def _as_it_is(group: Any) -> Any:
    return group
