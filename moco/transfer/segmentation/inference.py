"""A network for segmentation on many images, whole and one by one: worker processes read them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from moco.evaluation.features import evaluating
from moco.runtime.device import Device, worker_processes
from moco.runtime.errors import UserError
from moco.runtime.signals import ignore_signals

More = TypeVar("More")
Read = Callable[[int], tuple[Tensor, More]]
"""An image of this number, uint8 (3, height, width), and what else is wanted of it. UserError if it is broken."""


class _Images(Dataset[Any]):
    """Number, image and what else was read; of a broken one None and the error."""

    def __init__(self, read: Read[Any]) -> None:
        self.read = read

    def __getitem__(self, number: int) -> tuple[int, Tensor | None, Any]:
        try:
            return (number, *self.read(number))
        except UserError as error:
            return number, None, str(error)


@torch.no_grad()
def infer(
    model: nn.Module,
    read: Read[More],
    numbers: Iterable[int],
    device: Device,
    broken: Callable[[int, str], object],
    workers: int | None = 0,
) -> Iterator[tuple[int, More, Tensor]]:
    """Number, what else was read, and the class of every pixel of each image that can be read.

    The classes are uint8 (height, width) on the CPU.

    Args:
        model: an `FCN` on the device. It is in evaluation mode meanwhile.
        numbers: of the images, in this order.
        broken: called with the number of an image that cannot be read, and what is wrong.
        workers: processes that read; 0: this one; None: as `worker_processes` has it.
    """
    loader = DataLoader(
        _Images(read),
        batch_size=None,
        sampler=numbers,
        num_workers=worker_processes(workers, device.device),
        collate_fn=_as_it_is,
        # Of its own: the run's generator must not depend on how often one is evaluated.
        generator=torch.Generator(),
        worker_init_fn=ignore_signals,
    )
    with evaluating(model):
        for number, image, more in loader:
            if image is None:
                broken(number, more)
                continue
            images = image[None].to(device.device, memory_format=device.memory_format, non_blocking=True)
            with device.autocast():
                logits = model(images)
            yield number, more, logits[0].argmax(0).byte().cpu()


def _as_it_is(sample: Any) -> Any:
    return sample
