"""The operations of a view on a whole batch, each image with parameters of its own.

Images are float32 (n, 3, height, width) of values in 0..1 in any memory layout. Each operation gives what torchvision's
functional counterpart gives image by image; the tests hold them side by side. Parameters may lie on the CPU while the
images lie on a GPU: which images an operation is for is then known without waiting for the GPU.
"""

from functools import lru_cache

import torch
from torch import Tensor

from moco.views.parameters import CONTRAST, HUE, SATURATION

_GREY = (0.2989, 0.587, 0.114)
_KERNEL_RADIUS = 11
"""Gaussian blur with 23 x 23 pixels, the usual size at 224; at a sigma of 2 that is 5.5 standard deviations."""


def crop_and_resize(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crops each image to its box, resizes it to (size, size) with anti-aliased bilinear weights, and flips it.

    Resizing is linear in each direction, so crop, resize and flip are together two small matrices an image.

    Args:
        images: (n, 3, height, width), uint8 or floating.
        box: int64 (n, 4), top, left, height and width, within the image.
        flip: bool (n,), whether left and right are exchanged.

    Returns float32 (n, 3, size, size); values of uint8 images come out in 0..1.
    """
    n, channels, height, width = images.shape
    top, left, box_height, box_width = box.to(images.device, torch.float32, non_blocking=True).unbind(dim=1)
    rows = _resize_weights(top, box_height, height, size)
    columns = _resize_weights(left, box_width, width, size)
    flipped = flip.to(images.device, non_blocking=True)[:, None, None]
    columns = torch.where(flipped, columns.flip(1), columns).transpose(1, 2)
    # With the channels between rows and columns both products are one matrix an image.
    pixels = images.permute(0, 2, 1, 3).to(torch.float32).reshape(n, height * channels, width)
    if images.dtype == torch.uint8:
        columns = columns / 255
    resized = rows @ (pixels @ columns).view(n, height, channels * size)
    return resized.view(n, size, channels, size).permute(0, 2, 1, 3)


def _resize_weights(start: Tensor, length: Tensor, size: int, resized: int) -> Tensor:
    """What each of `resized` pixels takes of each of `size`: float32 (n, resized, size), rows of sum 1.

    The triangle filter of bilinear interpolation, widened to the scale when it shrinks (anti-aliasing), and cut off at
    the crop [start, start + length).
    """
    scale = (length / resized)[:, None, None]
    target = torch.arange(resized, device=start.device)[None, :, None] + 0.5
    source = torch.arange(size, device=start.device)[None, None, :] + 0.5
    start, end = start[:, None, None], (start + length)[:, None, None]
    weights = 1 - (source - (start + target * scale)).abs() / scale.clamp(min=1)
    weights = weights.clamp(min=0) * ((source > start) & (source < end))
    return weights / weights.sum(dim=2, keepdim=True)


def colour_jitter(images: Tensor, jitter: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order. Changes the images in place.

    Args:
        jitter: float32 (n, 4), factors of the first three and the shift of the hue in turns.
        order: int64 (n, 4), which comes first, second, third, last.
    """
    for step in range(4):
        operation = order[:, step]
        factor = jitter.gather(1, operation[:, None])[:, 0]
        hue = operation == HUE
        _blend(images, torch.where(hue, 1.0, factor), operation)
        _on_subset(images, hue & (factor != 0), adjust_hue, factor)
    return images


def _blend(images: Tensor, factor: Tensor, operation: Tensor) -> None:
    """In place: factor * image + (1 - factor) * other, where other is black, the mean grey, or the grey image.

    The three operations differ in that other alone, so the whole batch takes one step together.
    """
    rest = 1 - factor
    towards_grey = torch.where(operation == SATURATION, rest, 0.0)
    towards_mean = torch.where(operation == CONTRAST, rest, 0.0)
    own, grey_share, mean_share = (
        weight.to(images.device, non_blocking=True)[:, None, None, None]
        for weight in (factor, towards_grey, towards_mean)
    )
    grey = to_grey(images)
    other = grey * grey_share + grey.mean(dim=(2, 3), keepdim=True) * mean_share
    images.mul_(own).add_(other).clamp_(0, 1)


def to_grey(images: Tensor) -> Tensor:
    """(n, 3, height, width) to the luma of ITU-R 601: (n, 1, height, width)."""
    red, green, blue = images.unbind(dim=1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])[:, None]


def grey_scale(images: Tensor, grey: Tensor) -> Tensor:
    """Makes the images grey for which `grey`, bool (n,), says so. Changes them in place."""
    _on_subset(images, grey, lambda chosen, _: to_grey(chosen).expand_as(chosen), grey)
    return images


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of each image by shift (n,), in turns of the colour circle (-0.5 to 0.5).

    The way through HSV in closed form: with c = max - min and hue h in sixths of a turn, each channel is
    max - c * clamp(min(k, 4 - k), 0, 1), k = (h + 5, 3, 1) mod 6 for red, green, blue.
    """
    red, green, blue = images.unbind(dim=1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        red == high,
        (green - blue) / safe,
        torch.where(green == high, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue += 6 * shift[:, None, None] + 12  # keeps the remainder's operand positive
    turned = torch.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        k = (hue + offset).fmod_(6)
        torch.sub(high, torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma), out=turned[:, channel])
    return turned


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs each image with standard deviation sigma (n,) in pixels, edges reflected; 0 leaves it. In place."""
    _on_subset(images, sigma > 0, _blur, sigma)
    return images


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    rows, columns = _blur_weights(sigma, height), _blur_weights(sigma, width)
    pixels = images.permute(0, 2, 1, 3).reshape(n, height * channels, width) @ columns.transpose(1, 2)
    return (rows @ pixels.view(n, height, channels * width)).view(n, height, channels, width).permute(0, 2, 1, 3)


def _blur_weights(sigma: Tensor, size: int) -> Tensor:
    """What each blurred pixel takes of each pixel along one direction: (n, size, size), rows of sum 1."""
    radius = min(_KERNEL_RADIUS, size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    return (kernel @ _reflections(size, radius, sigma.device)).view(-1, size, size)


@lru_cache(maxsize=8)
def _reflections(size: int, radius: int, device: torch.device) -> Tensor:
    """1 where a kernel's offset, reflected at the edges, leads from one pixel to another: (offsets, size * size)."""
    position = torch.arange(size)[None, :] + torch.arange(-radius, radius + 1)[:, None]
    position = (size - 1) - ((size - 1) - position.abs()).abs()
    return torch.nn.functional.one_hot(position, size).float().flatten(1).to(device)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(images - mean) / std for each channel, as a new tensor."""
    scale = torch.tensor([1 / s for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)[:, None, None]
    return torch.addcmul(shift, images, scale)


def _on_subset(images: Tensor, chosen: Tensor, operation, parameter: Tensor) -> None:  # type: ignore[no-untyped-def]
    """In place: operation(images, parameter) on the images that are chosen, bool (n,)."""
    positions = chosen.nonzero()[:, 0]
    if len(positions) == len(images):
        images.copy_(operation(images, parameter.to(images.device, non_blocking=True)))
    elif len(positions):
        rows = positions.to(images.device, non_blocking=True)
        images[rows] = operation(images[rows], parameter[positions].to(images.device, non_blocking=True))
