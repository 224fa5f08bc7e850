"""The operations of a view on a whole batch, each image with parameters of its own.

Images are float32 (n, 3, height, width) of values in 0..1 in any memory layout. Each operation gives what torchvision's
functional counterpart gives image by image; the tests hold them side by side. Parameters may lie on the CPU while the
images lie on a GPU: which images an operation is for is then known without waiting for the GPU.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moco.contrast.kernels import kernels
from moco.contrast.threads import in_threads

_GREY = (0.2989, 0.587, 0.114)
SOLARISE_FROM = 128 / 255
_KERNEL_RADIUS = 11
"""Gaussian blur with 23 x 23 pixels, the usual size at 224; at a sigma of 2 that is 5.5 standard deviations."""
_REACH = 4.5
"""Standard deviations after which the kernel is cut off: less than a hundred-thousandth of its weight is beyond."""
_HUGE = 1e30
_TOGETHER = 2**16
"""Pixels that a thread resizes to before it takes the next ones."""
_RESIZED_TOGETHER = 2**24
"""Pixels that an accelerator resizes at once: some 200 MB."""
_SMALL = 48
"""Pixels a side of an image, up to which a kernel of our own resizes its crops: PyTorch's is made for large ones."""


def crop_and_resize(images: Tensor | Sequence[Tensor], box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crops images to boxes, resizes each crop to (size, size), bilinear with anti-aliasing, and flips it.

    The one place where pixels are resampled. A CPU and every accelerator give the same bytes: those of torchvision's
    `resized_crop` with antialias=True on a uint8 tensor.

    Args:
        images: uint8 (m, 3, height, width), or m of (3, height, width) of any sizes on one device.
        box: int64 (n, 4), on the CPU, or where the images are if these are a tensor: top, left, height and width; row i
            is a crop of image i % m, and within it.
        flip: bool (n,), whether left and right are exchanged.

    Returns uint8 (n, 3, size, size) on the device of the images.
    """
    device = images[0].device
    if device.type != "cpu":
        return _resize_in_integers(images, box, flip, size)
    on_cpu = kernels("moco.views.resize_cpu")
    if on_cpu is not None and isinstance(images, Tensor) and max(images.shape[2:]) <= _SMALL:
        small: Tensor = on_cpu.crop_and_resize_small(images, box, flip, size)
        return small
    # Decoders give pixels with the channels last, which is also what the kernel is fastest on.
    crops = torch.empty((len(box), 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    boxes, flips = box.tolist(), flip.tolist()

    def work(first: int, last: int) -> None:
        for row in range(first, last):
            top, left, height, width = boxes[row]
            part = images[row % len(images)][None, :, top : top + height, left : left + width]
            resized = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
            crops[row] = resized.flip(2) if flips[row] else resized

    in_threads(work, len(box), max(1, _TOGETHER // size**2))
    return crops


def _resize_in_integers(images: Tensor | Sequence[Tensor], box: Tensor, flip: Tensor, size: int) -> Tensor:
    """`crop_and_resize` for devices without PyTorch's uint8 kernel, by the same integer arithmetic, batched."""
    device = images[0].device
    pixels, first, stride = _rows_of_pixels(images, box.device)
    image = torch.arange(len(box), device=box.device) % len(images)
    if box.device.type == "cpu":
        longest = box[:, 2:].amax(dim=0).tolist()
    else:  # what it is exactly would be waited for
        assert isinstance(images, Tensor)
        longest = list(images.shape[2:])
    crops = torch.empty((len(box), 3, size, size), dtype=torch.uint8, device=device, memory_format=torch.channels_last)
    # Crops of like height together: the first pass makes as many rows of each as the tallest has.
    for rows in box[:, 2].argsort().split(max(1, _RESIZED_TOGETHER // (longest[0] * size))):
        top, left, height, width = box[rows].unbind(dim=1)
        tallest = int(height.max()) if box.device.type == "cpu" else longest[0]
        x, x_weights, x_bits = _taps(width, longest[1], size, flip[rows], device)
        y, y_weights, y_bits = _taps(height, tallest, size, torch.zeros_like(flip[rows]), device)
        lines = torch.arange(tallest, device=box.device)
        line = top[:, None] + torch.minimum(lines, height[:, None] - 1)
        start = first[image[rows], None] + line * stride[image[rows], None] + left[:, None]
        start = start.to(device, non_blocking=True)
        # Horizontally, for every row of the crop: (rows, tallest, size, 3).
        total = torch.zeros((*start.shape, size, 3), dtype=torch.int32, device=device)
        for tap in range(x.shape[2]):
            total += pixels[start[:, :, None] + x[:, None, :, tap]] * x_weights[:, None, :, tap, None]
        resized = _round_to_bytes(total, x_bits)
        # Vertically, among these rows: (rows, size, size, 3).
        own = torch.arange(len(rows), device=device)[:, None]
        total = torch.zeros((len(rows), size, size, 3), dtype=torch.int32, device=device)
        for tap in range(y.shape[2]):
            total += resized[own, y[:, :, tap]] * y_weights[:, :, tap, None, None]
        crops[rows.to(device, non_blocking=True)] = _round_to_bytes(total, y_bits).permute(0, 3, 1, 2)
    return crops


def _rows_of_pixels(images: Tensor | Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of all images, (pixels, 3); of each its first pixel's place and its width, int64 (m,) on `device`."""
    if isinstance(images, Tensor):
        m, _, height, width = images.shape
        pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)
        return pixels, torch.arange(m, device=device) * (height * width), torch.full((m,), width, device=device)
    height_of, width_of = torch.tensor([image.shape[1:] for image in images]).unbind(dim=1)
    pixels = torch.cat([image.permute(1, 2, 0).reshape(-1, 3) for image in images])
    return pixels, (height_of * width_of).cumsum(dim=0) - height_of * width_of, width_of


def _taps(
    length: Tensor, longest: int, size: int, reverse: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What each of `size` resized pixels takes of crops of `length` pixels, int64 (n,) up to `longest`, in fixed point.

    PyTorch's `_compute_index_ranges_int16_weights`: a triangle as wide as the scale, at least one pixel, cut off at the
    crop and normalised, in double precision; then as 16-bit integers, with as many bits after the point as fit.

    Returns, on the device, the source pixels, int64 (n, size, taps), their weights, int32 (n, size, taps), and the bits
    after the point, int32 (n,); in reverse order where `reverse`, bool (n,), is true.
    """
    most = math.ceil(2 * max(1.0, longest / size)) + 1
    exact = device if device.type != "mps" else torch.device("cpu")  # which has no double precision
    length, reverse = (given.to(exact, non_blocking=True)[:, None] for given in (length, reverse))
    scale = length.double() / size
    support = scale.clamp(min=1)
    target = torch.arange(size, device=exact)
    centre = scale * (torch.where(reverse, size - 1 - target, target) + 0.5)
    start = (centre - support + 0.5).long().clamp(min=0)
    end = torch.minimum((centre + support + 0.5).long(), length)
    source = start[:, :, None] + torch.arange(most, device=exact)
    offset = (source - centre[:, :, None] + 0.5) * (1 / support)[:, :, None]
    weights = (1 - offset.abs()).clamp(min=0) * (source < end[:, :, None])
    weights = weights / weights.sum(dim=2, keepdim=True)
    largest, powers = weights.amax(dim=(1, 2)), 2 << torch.arange(22, device=exact)
    bits = ((largest[:, None] * powers + 0.5).long() < 2**15).sum(dim=1)
    fixed = (weights * (1 << bits)[:, None, None] + 0.5).int()
    return torch.minimum(source, length[:, :, None] - 1).to(device), fixed.to(device), bits.int().to(device)


def _round_to_bytes(total: Tensor, bits: Tensor) -> Tensor:
    """Sums (n, ...) with `bits` (n,) after the point, as uint8."""
    bits = bits.view(-1, *[1] * (total.ndim - 1))
    return ((total + (1 << (bits - 1))) >> bits).clamp_(0, 255).to(torch.uint8)


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
    """Makes the images grey where `grey`, bool (n,), is true. Changes them in place."""
    _on_rows(images, _where(grey), lambda chosen, _: to_grey(chosen).expand_as(chosen), grey)
    return images


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of each image by shift (n,), in turns of the colour circle (-0.5 to 0.5). Changes them in place.

    The way through HSV in closed form: with c = max - min and hue h in turns, each channel is
    min + c * clamp(|6 frac(h + offset) - 2| - 1, 0, 1), offset = 5/6, 3/6, 1/6 for red, green, blue. Which channel is
    the largest is encoded by numbers, 0 or 1, as choosing by conditions is ten times as slow on a CPU.
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
    """Both directions, one after the other; no kernel has more than `reach` pixels to a side."""
    height, width = images.shape[2:]
    rows, columns = _kernel(sigma, height, reach), _kernel(sigma, width, reach)
    across, down = columns.shape[1] // 2, rows.shape[1] // 2
    padded = F.pad(images, (across, across, down, down), mode="reflect")
    return (_sum_shifted if images.device.type == "cpu" else _multiply_matrices)(padded, rows, columns)


def _sum_shifted(padded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Adds the image up, shifted and weighted, in one order whichever images are beside it: on a CPU a view does not
    depend on its batch by a single bit."""
    for dim, kernel in ((2, rows), (3, columns)):
        taps, far = kernel[:, :, None, None, None], kernel.shape[1] // 2
        shifted = [padded.narrow(dim, i, padded.shape[dim] - 2 * far) for i in range(2 * far + 1)]
        padded = shifted[far] * taps[:, far]
        for i in [*range(far), *range(far + 1, 2 * far + 1)]:
            padded.addcmul_(shifted[i], taps[:, i])
    return padded


def _multiply_matrices(padded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same as two matrices an image: to an accelerator, few large operations are less than many small ones."""
    n, channels, tall, wide = padded.shape
    height, width = tall + 1 - rows.shape[1], wide + 1 - columns.shape[1]
    blurred = padded.permute(0, 2, 1, 3).reshape(n, tall * channels, wide) @ _banded(columns, width).transpose(1, 2)
    blurred = _banded(rows, height) @ blurred.view(n, tall, channels * width)
    return blurred.view(n, height, channels, width).permute(0, 2, 1, 3)


def _banded(kernel: Tensor, size: int) -> Tensor:
    """What each of `size` pixels takes of the padded ones: (n, taps) to (n, size, size + taps - 1)."""
    # A row longer than the kernel by the size, repeated, puts the kernel one further along in each row.
    length = size + kernel.shape[1] - 1
    return F.pad(kernel, (0, size)).repeat(1, size)[:, : size * length].view(len(kernel), size, length)


def blur_kernels(sigma: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The whole kernels down and across of images of a size, float32 (n, odd): 23 wide, or as far as edges reflect."""
    return _kernel(sigma, height, _KERNEL_RADIUS), _kernel(sigma, width, _KERNEL_RADIUS)


def _kernel(sigma: Tensor, size: int, reach: int) -> Tensor:
    """The weights within reach of a pixel, 0 where an image's own kernel is cut off: (n, 2 * reach + 1)."""
    radius = min(_KERNEL_RADIUS, size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True) * (offset.abs() < _REACH * sigma[:, None] + 1)
    reach = min(reach, radius)
    return kernel[:, radius - reach : radius + reach + 1]


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
    out.copy_(images)


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
