"""What a worker does: it decodes the images of a batch, each once, and crops them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moco.contrast.threads import in_threads
from moco.data.dataset import Content, Encoded
from moco.data.order import Indices
from moco.runtime.errors import UserError
from moco.views import Parameters, Views
from moco.views.operations import crop_and_resize


class Request(NamedTuple):
    """A batch that a worker is to make."""

    indices: Indices
    content: Content | None = None
    """What was read of it already; the worker reads the rest."""


class CropBatch(NamedTuple):
    """Images of a batch, decoded and cropped, as a worker sends them."""

    images: Tensor
    """int64 (n,)."""
    crops: Tensor
    """uint8 (views * n, 3, size, size), flipped already, all of view 0, then all of view 1."""
    parameters: Parameters
    """(views * n)."""
    errors: dict[int, str]
    """What could not be read, by position."""


class CropDataset(torch.utils.data.Dataset[Any]):
    """The crops of a batch of images."""

    def __init__(self, images: Encoded, views: Views) -> None:
        self.images, self.views = images, views

    def __getitems__(self, request: Request) -> CropBatch | UserError:
        (epoch, index), images = request.indices, self.images.with_content(request.content)
        errors: dict[int, str] = {}
        decoded: list[tuple[int, Tensor]] = [(0, torch.empty(0))] * len(index)

        def decode(first: int, last: int) -> None:
            for number in range(first, last):
                decoded[number] = images.readable_near(int(index[number]), errors)

        try:
            in_threads(decode, len(index), 1)
        except UserError as error:
            return error  # raised here, it would reach the reader with a traceback in its message
        actual = torch.tensor([position for position, _ in decoded])
        pictures = [picture for _, picture in decoded]
        height, width = torch.tensor([picture.shape[1:] for picture in pictures]).unbind(dim=1)
        parameters = self.views.parameters(actual, epoch, height, width)
        crops = crop_and_resize(pictures, parameters.box, parameters.flip, self.views.size)
        return CropBatch(actual, crops, parameters, dict(sorted(errors.items())))
