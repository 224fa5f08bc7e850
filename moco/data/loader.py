"""How views of images reach the device."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from moco.data.images import Encoded, ImageSet, InMemory
from moco.data.order import Asked, Plan
from moco.errors import UserError
from moco.views import Parameters, Views


class Batch(NamedTuple):
    images: Tensor
    """int64 (n,), on the CPU: the images' numbers; one other than asked for took an unreadable one's place."""
    views: list[Tensor]
    """Each float32 (n, 3, size, size), normalised, on the device."""


class Loader:
    """Brings views of a set's images to the device.

    Images in memory lie on the device whole, and everything happens there. Files are decoded and cropped by `workers`
    processes, which send uint8 crops; photometric work is done on the device in either case.

    Args:
        images: the set.
        views: which views of them.
        device: where the views are wanted.
        workers: processes that decode files; 0 decodes in this one.
    """

    def __init__(self, images: ImageSet, views: Views, device: torch.device, workers: int = 0) -> None:
        self.images = images.to(device) if isinstance(images, InMemory) else images
        self.views, self.device, self.workers = views, device, workers

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The batches of the plan. Raises UserError when too many images cannot be read."""
        if isinstance(self.images, InMemory):
            for epoch, index in plan:
                yield Batch(index, self.views(self.images.images[index.to(self.device)], index, epoch))
        else:
            yield from self._decoded(self.images, plan)

    def _decoded(self, images: Encoded, plan: Plan) -> Iterator[Batch]:
        loader = DataLoader(
            _Crops(images, self.views),
            batch_sampler=plan,  # type: ignore[arg-type]  # any iterable; its items go to _Crops as they are
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
        )
        for crops_or_error in loader:
            if isinstance(crops_or_error, UserError):
                raise crops_or_error
            index, crops, parameters, errors = crops_or_error
            images.report(errors)
            views = [
                self.views.photometric(crop.to(self.device, non_blocking=True).float() / 255, own)
                for crop, own in zip(crops, parameters, strict=True)
            ]
            yield Batch(index, views)


_Read = tuple[Tensor, list[Tensor], list[Parameters], dict[int, str]]


class _Crops(torch.utils.data.Dataset[Any]):
    """What a worker does: reads a batch of files once, and takes each view's crop of them."""

    def __init__(self, images: Encoded, views: Views) -> None:
        self.images, self.views = images, views

    def __getitems__(self, asked: Asked) -> _Read | UserError:
        epoch, index = asked
        errors: dict[int, str] = {}
        try:
            found = [self.images.decode_near(position, errors) for position in index.tolist()]
        except UserError as error:
            return error  # raised here, it would reach the reader with a traceback in its message
        actual = torch.tensor([position for position, _ in found])
        pictures = [picture for _, picture in found]
        height, width = torch.tensor([picture.shape[1:] for picture in pictures]).unbind(dim=1)
        parameters = [self.views.parameters(actual, epoch, view, height, width) for view in range(self.views.count)]
        return actual, [self._crop(pictures, own) for own in parameters], parameters, errors

    def _crop(self, pictures: list[Tensor], parameters: Parameters) -> Tensor:
        """uint8 (n, 3, size, size)."""
        size = [self.views.size, self.views.size]
        crops = [
            F.resized_crop(picture, *box, size, InterpolationMode.BILINEAR, antialias=True)
            for picture, box in zip(pictures, parameters.box.tolist(), strict=True)
        ]
        stacked = torch.stack(crops)
        return torch.where(parameters.flip[:, None, None, None], stacked.flip(3), stacked)


def _as_it_is(batch: Any) -> Any:
    return batch
