"""Decoding on the GPU: workers send JPEGs as they are, nvJPEG decodes a batch of them, and crops are taken there."""

import logging
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moco.data.dataset import Encoded, ImageSet, InMemory
from moco.data.formats.decode import UnreadableImageError, decode, decode_jpeg, plain_jpeg_size
from moco.data.loading.crops import CropBatch, CropDataset, Request
from moco.data.order import Indices
from moco.runtime.errors import UserError
from moco.views import Parameters, Views
from moco.views.operations import crop_and_resize

log = logging.getLogger("moco")
_SAMPLE = 64


class EncodedBatch(NamedTuple):
    """What a worker sends of a batch whose JPEGs the GPU decodes."""

    images: Tensor
    """int64 (n,)."""
    content: list[Tensor]
    """Of each image its bytes, uint8 (length,), or, if it is no plain JPEG, its pixels, uint8 (3, height, width)."""
    parameters: Parameters
    """(views * n)."""
    errors: dict[int, str]


class EncodedDataset(torch.utils.data.Dataset[Any]):
    """What a worker does when the GPU decodes: reads, and decodes what is no plain JPEG."""

    def __init__(self, images: Encoded, views: Views) -> None:
        self.images, self.views = images, views

    def __getitems__(self, request: Request) -> EncodedBatch | UserError:
        (epoch, index), images = request.indices, self.images.with_content(request.content)
        errors: dict[int, str] = {}
        try:
            found = [_read(images, position, errors) for position in index.tolist()]
        except UserError as error:
            return error
        actual = torch.tensor([position for position, *_ in found])
        height, width = torch.tensor([size for _, size, _ in found]).unbind(dim=1)
        parameters = self.views.parameters(actual, epoch, height, width)
        return EncodedBatch(actual, [content for *_, content in found], parameters, errors)


def _read(images: Encoded, position: int, errors: dict[int, str]) -> tuple[int, tuple[int, int], Tensor]:
    """Which image it is, its height and width, and its content as in `EncodedBatch`."""
    try:
        data = images.read(position)
    except UnreadableImageError:
        data = b""
    if (size := plain_jpeg_size(data)) is not None:
        return position, size, torch.frombuffer(bytearray(data), dtype=torch.uint8)
    actual, pixels = images.readable_near(position, errors)
    return actual, (pixels.shape[1], pixels.shape[2]), pixels.contiguous()


def decode_and_crop(packets: EncodedBatch, size: int, device: torch.device) -> CropBatch:
    """The crops of a batch, taken on the device, as a worker would have sent them.

    A JPEG that turns out to be damaged is a grey image, and counted.
    """
    jpegs = [i for i, content in enumerate(packets.content) if content.ndim == 1]
    pictures = list(packets.content)
    errors = dict(packets.errors)
    try:
        decoded = _decode([packets.content[i] for i in jpegs], device)
    except RuntimeError:  # of one of them, unknown which
        decoded = [_decode_one(packets, i, errors) for i in jpegs]
    for i, picture in zip(jpegs, decoded, strict=True):
        pictures[i] = picture
    crops = crop_and_resize([picture.to(device) for picture in pictures], *packets.parameters[:2], size)
    return CropBatch(packets.images, crops, packets.parameters, errors)


def _decode(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
    if decode_jpeg is None:
        raise UserError("--decoder gpu: needs TorchCodec, which cannot be imported here: --decoder cpu")
    return list(decode_jpeg(jpegs, device=device)) if jpegs else []


def _decode_one(packets: EncodedBatch, i: int, errors: dict[int, str]) -> Tensor:
    data = packets.content[i].numpy().tobytes()
    try:
        return decode(data, f"image {int(packets.images[i])}")
    except UnreadableImageError as error:
        errors[int(packets.images[i])] = str(error)
        height, width = plain_jpeg_size(data) or (1, 1)
        return torch.full((3, height, width), 128, dtype=torch.uint8)


def faster_on_gpu(images: ImageSet, views: Views, device: torch.device, workers: int) -> bool:
    """Whether a GPU decodes a sample of the images sooner than so many workers would, as measured here, now.

    Not on another device, and not what is in memory, decoded.
    """
    if device.type != "cuda" or isinstance(images, InMemory):
        return False
    assert isinstance(images, Encoded)
    sample = Request(Indices(torch.zeros(_SAMPLE, dtype=torch.int64), torch.arange(_SAMPLE) % len(images)))
    packets = EncodedDataset(images, views).__getitems__(sample)
    if isinstance(packets, UserError):
        raise packets
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker has
    for name in ("gpu", "gpu", "cpu"):  # the first warms up
        start = time.perf_counter()
        if name == "gpu":
            decode_and_crop(packets, views.size, device)
            torch.cuda.synchronize(device)
        else:
            CropDataset(images, views).__getitems__(sample)
        seconds[name] = time.perf_counter() - start
    torch.set_num_threads(threads)
    cpu, gpu = seconds["cpu"] / max(1, workers), seconds["gpu"]
    log.info("decoding %d images: %.0f ms by %d workers, %.0f ms by the GPU", _SAMPLE, 1e3 * cpu, workers, 1e3 * gpu)
    return gpu < cpu
