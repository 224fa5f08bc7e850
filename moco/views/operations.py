"""The operations of a view on a whole batch, each image with parameters of its own.

Images are float32 (n, 3, height, width) of values in 0..1 in any memory layout. Each operation gives what torchvision's
functional counterpart gives image by image; the tests hold them side by side. Parameters may lie on the CPU while the
images lie on a GPU: which images an operation is for is then known without waiting for the GPU.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)
SOLARISE_FROM = 128 / 255
_KERNEL_RADIUS = 11
"""Gaussian blur with 23 x 23 pixels, the usual size at 224; at a sigma of 2 that is 5.5 standard deviations."""
_REACH = 4.5
"""Standard deviations after which the kernel is cut off: less than a hundred-thousandth of its weight is beyond."""
_BAND = 32
"""Pixels along a band of the blur's matrix, nearly all of which is 0."""
_HUGE = 1e30


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
    flipped = flip.to(images.device, non_blocking=True)
    rows = _resize_weights(top, box_height, height, size, torch.zeros_like(flipped))
    columns = _resize_weights(left, box_width, width, size, flipped).transpose(1, 2)
    # With the channels between rows and columns both products are one matrix an image.
    pixels = images.permute(0, 2, 1, 3).to(torch.float32).reshape(n, height * channels, width)
    if images.dtype == torch.uint8:
        columns = columns / 255
    resized = rows @ (pixels @ columns).view(n, height, channels * size)
    # The many passes that follow are fast over whole planes.
    return resized.view(n, size, channels, size).permute(0, 2, 1, 3).contiguous()


def _resize_weights(start: Tensor, length: Tensor, size: int, resized: int, reverse: Tensor) -> Tensor:
    """What each of `resized` pixels takes of each of `size`: float32 (n, resized, size), rows of sum 1.

    The triangle filter of bilinear interpolation, widened to the scale when it shrinks (anti-aliasing), and cut off at
    the crop [start, start + length). The resized pixels come in reverse order where `reverse`, bool (n,), says so.
    """
    scale = (length / resized)[:, None, None]
    target = torch.arange(resized, device=start.device)[None, :, None] + 0.5
    target = torch.where(reverse[:, None, None], resized - target, target)
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
    changed = (jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).tolist()
    for operations in order.t().tolist():
        for which, operation in enumerate(_JITTERS):
            rows = [row for row, own in enumerate(operations) if own == which and changed[row][which]]
            _on_rows(images, rows, operation, jitter[:, which])
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor (n,) times the image, in 0..1. In place."""
    return images.mul_(factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """factor (n,) times the image and 1 - factor times its mean grey, in 0..1. In place."""
    mean = to_grey(images.mean(dim=(2, 3), keepdim=True)).mul_((1 - factor)[:, None, None, None])
    return images.mul_(factor[:, None, None, None]).add_(mean).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """factor (n,) times the image and 1 - factor times the grey image, in 0..1. In place."""
    grey = to_grey(images).mul_((1 - factor)[:, None, None, None])
    return images.mul_(factor[:, None, None, None]).add_(grey).clamp_(0, 1)


def to_grey(images: Tensor) -> Tensor:
    """(n, 3, height, width) to the luma of ITU-R 601: (n, 1, height, width)."""
    red, green, blue = images.unbind(dim=1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])[:, None]


def grey_scale(images: Tensor, grey: Tensor) -> Tensor:
    """Makes the images grey for which `grey`, bool (n,), says so. Changes them in place."""
    _on_rows(images, _where(grey), lambda chosen, _: to_grey(chosen).expand_as(chosen), grey)
    return images


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of each image by shift (n,), in turns of the colour circle (-0.5 to 0.5). Changes them in place.

    The way through HSV in closed form: with c = max - min and hue h in turns, each channel is
    min + c * clamp(|6 frac(h + offset) - 2| - 1, 0, 1), offset = 5/6, 3/6, 1/6 for red, green, blue. Which channel is
    the largest is told by numbers, 0 or 1, as choosing by conditions is ten times as slow on a CPU.
    """
    red, green, blue = images.unbind(dim=1)
    high = torch.maximum(red, green).clamp_(min=blue)
    low = torch.minimum(red, green).clamp_(max=blue)
    not_red, not_green = (torch.sub(high, channel).mul_(_HUGE).clamp_(max=1) for channel in (red, green))
    # Six times c * h, without the offset of the largest channel: green - blue, or blue - red, or red - green.
    hue = torch.lerp(green - blue, torch.lerp(blue - red, red - green, not_green), not_red)
    chroma = high.sub_(low)
    hue.div_((6 * chroma).clamp_(min=1 / _HUGE))
    hue += not_green.add_(1).mul_(not_red).div_(3)
    hue += shift[:, None, None] + 2  # keeps it positive
    share = not_red  # its room is used again
    for channel, offset in enumerate((5 / 6, 3 / 6, 1 / 6)):
        torch.add(hue, offset, out=share).frac_().mul_(6).sub_(2).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(low, chroma, share, out=images[:, channel])
    return images


_JITTERS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
"""In the order of BRIGHTNESS, CONTRAST, SATURATION, HUE."""


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs each image with standard deviation sigma (n,) in pixels, edges reflected; 0 leaves it. In place."""
    reach = min(_KERNEL_RADIUS, math.ceil(_REACH * float(sigma.max()))) if len(sigma) else 0
    _on_rows(images, _where(sigma > 0), lambda chosen, own: _blur(chosen, own, reach), sigma)
    return images


def _blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Both directions, one after the other; there is nothing beyond `reach` pixels.

    One image is summed up shifted and weighted, which stays in a core's cache. Many, each with weights of its own, are
    multiplied with the bands of a matrix, on a CPU band by band; to a GPU one whole product is less than many.
    """
    n, channels, height, width = images.shape
    across, down = min(reach, width - 1), min(reach, height - 1)
    padded = F.pad(images, (across, across, down, down), mode="reflect")
    if n == 1 and images.device.type == "cpu":
        for dim, size, far in ((2, height, down), (3, width, across)):
            taps = _kernel(sigma, size, far)[0].tolist()
            shifted = [padded.narrow(dim, i, size) for i in range(2 * far + 1)]
            padded = shifted[far] * taps[far]
            for part, tap in zip(shifted, taps, strict=True):
                if part is not shifted[far]:
                    padded.add_(part, alpha=tap)
        return padded
    padded = padded.permute(0, 2, 1, 3)
    rows = padded.reshape(n, (height + 2 * down) * channels, width + 2 * across)
    band = _BAND if images.device.type == "cpu" else max(height, width)
    bands = _bands(_blur_weights(sigma, width, across, band), width, band, across)
    blurred = [rows[..., i : i + band + 2 * across] @ weights for i, weights in bands]
    rows = torch.cat(blurred, dim=2).view(n, height + 2 * down, channels * width)
    weights = _blur_weights(sigma, height, down, band)
    blurred = [
        part.transpose(1, 2) @ rows[:, i : i + band + 2 * down] for i, part in _bands(weights, height, band, down)
    ]
    return torch.cat(blurred, dim=1).view(n, height, channels, width).permute(0, 2, 1, 3)


def _blur_weights(sigma: Tensor, size: int, reach: int, band: int) -> Tensor:
    """What each pixel of a band takes of each within reach of it: (n, band + 2 * reach, band)."""
    kernel = _kernel(sigma, size, reach)
    # A row longer than the kernel by the band, repeated, puts the kernel one further down in each column.
    n = len(sigma)
    return F.pad(kernel, (0, band)).repeat(1, band)[:, : (band + 2 * reach) * band].view(n, band, -1).transpose(1, 2)


def _kernel(sigma: Tensor, size: int, reach: int) -> Tensor:
    """The weights within reach of a pixel: (n, 2 * reach + 1)."""
    radius = min(_KERNEL_RADIUS, size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    return (kernel / kernel.sum(dim=1, keepdim=True))[:, radius - reach : radius + reach + 1]


def _bands(weights: Tensor, size: int, band: int, reach: int) -> list[tuple[int, Tensor]]:
    """Where each band begins, and its weights; the last one may be narrower."""
    widths = [(i, min(band, size - i)) for i in range(0, size, band)]
    return [(i, weights[:, : width + 2 * reach, :width]) for i, width in widths]


def solarise(images: Tensor, chosen: Tensor) -> Tensor:
    """Inverts the brighter half of the values of the chosen images, bool (n,), as Pillow and BYOL do. In place."""
    _on_rows(images, _where(chosen), lambda own, _: torch.where(own >= SOLARISE_FROM, 1 - own, own), chosen)
    return images


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor) -> None:
    """Writes (images - mean) / std of each channel to `out`, of the same shape and any floating dtype and layout.

    The images are overwritten.
    """
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        images[:, channel].sub_(m).mul_(1 / s)
    images = images.to(out.dtype)
    # A CPU would fetch what is in no cache yet once for every channel; so they are woven together elsewhere.
    woven = torch.empty_like(out) if len(images) == 1 and out.device.type == "cpu" else out
    for channel in range(len(mean)):
        woven[:, channel] = images[:, channel]
    if woven is not out:
        out.copy_(woven)


def _on_rows(images: Tensor, rows: list[int], operation: Callable[[Tensor, Tensor], Tensor], own: Tensor) -> None:
    """In place: operation(images, own parameters) on some of the images."""
    if len(rows) == len(images):
        images.copy_(operation(images, own.to(images.device, non_blocking=True)))
    elif rows:
        chosen = torch.tensor(rows)
        on_device = chosen.to(images.device, non_blocking=True)
        images[on_device] = operation(images[on_device], own[chosen].to(images.device, non_blocking=True))


def _where(chosen: Tensor) -> list[int]:
    return chosen.nonzero()[:, 0].tolist()
