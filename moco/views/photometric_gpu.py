"""The colours of views on a CUDA GPU: jitter, grey scale and normalisation of a batch in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moco.views.parameters import Parameters

_PIXELS = 1024
"""So many are worked on at once; a larger image is gone through in pieces."""
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]


def colours(
    crops: Tensor, parameters: Parameters, grey_first: bool, normalisation: Normalisation | None, out: Tensor
) -> None:
    """Writes the crops with colour jitter and grey scale, and normalised if that is given, to `out`.

    Args:
        crops: uint8 (n, 3, height, width) in any layout.
        parameters: of each crop; jitter, order and grey are used.
        grey_first: grey scale comes before the jitter (v1).
        normalisation: mean and standard deviation of the channels; None: values stay in 0..1.
        out: of the same shape, any floating dtype, either layout.
    """
    n, _, height, width = crops.shape
    if out.stride(2) != width * out.stride(3):
        raise ValueError("the rows of an image follow each other in memory")
    if crops.stride(2) != width * crops.stride(3):
        crops = crops.contiguous()
    device = crops.device
    jitter, order, grey = (
        field.to(device, non_blocking=True).contiguous()
        for field in (parameters.jitter, parameters.order, parameters.grey)
    )
    mean, std = normalisation or ((0.0,) * 3, (1.0,) * 3)
    strides = (*(crops.stride(dim) for dim in (0, 1, 3)), *(out.stride(dim) for dim in (0, 1, 3)))
    _colours[(n,)](
        crops, out, jitter, order, grey.view(torch.uint8), height * width, *strides, *mean, *std, grey_first, _PIXELS
    )


@triton.jit
def _luma(red, green, blue):
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _clamped(value):
    return tl.minimum(tl.maximum(value, 0.0), 1.0)


@triton.jit
def _channel(hue, low, chroma, offset):
    turned = hue + offset
    return low + chroma * _clamped(tl.abs(6.0 * (turned - tl.floor(turned)) - 2.0) - 1.0)


@triton.jit
def _turned(red, green, blue, shift):
    """`adjust_hue`, the same closed form."""
    high = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = high - low
    six = tl.maximum(6.0 * chroma, 1e-30)
    # Not whether a channel equals the largest: a compiler may compute a value twice, rounded otherwise.
    of_red, of_green = (red >= green) & (red >= blue), green >= blue
    hue = tl.where(
        of_red, (green - blue) / six, tl.where(of_green, (blue - red) / six + 1 / 3, (red - green) / six + 2 / 3)
    )
    hue += shift + 2.0
    return _channel(hue, low, chroma, 5 / 6), _channel(hue, low, chroma, 3 / 6), _channel(hue, low, chroma, 1 / 6)


@triton.jit
def _jittered(red, green, blue, order, brightness, contrast, saturation, hue, mean, stop):
    """The first `stop` of the four operations, in the image's own order."""
    for place in tl.static_range(4):
        which = tl.load(order + place)
        if place < stop:
            if which == 0:
                red, green, blue = _clamped(red * brightness), _clamped(green * brightness), _clamped(blue * brightness)
            elif which == 1:
                more = (1.0 - contrast) * mean
                red, green, blue = (
                    _clamped(red * contrast + more),
                    _clamped(green * contrast + more),
                    _clamped(blue * contrast + more),
                )
            elif which == 2:
                more = (1.0 - saturation) * _luma(red, green, blue)
                red, green, blue = (
                    _clamped(red * saturation + more),
                    _clamped(green * saturation + more),
                    _clamped(blue * saturation + more),
                )
            else:
                if hue != 0.0:
                    red, green, blue = _turned(red, green, blue, hue)
    return red, green, blue


@triton.jit
def _read(crop, pixel, inside, channel_stride, pixel_stride, make_grey):
    place = crop + pixel * pixel_stride
    red = tl.load(place, inside, 0).to(tl.float32) / 255.0
    green = tl.load(place + channel_stride, inside, 0).to(tl.float32) / 255.0
    blue = tl.load(place + 2 * channel_stride, inside, 0).to(tl.float32) / 255.0
    if make_grey:
        luma = _luma(red, green, blue)
        red, green, blue = luma, luma, luma
    return red, green, blue


@triton.jit
def _colours(
    crops,
    out,
    jitter,
    order,
    grey,
    pixels,
    crop_stride,
    channel_stride,
    pixel_stride,
    out_stride,
    out_channel_stride,
    out_pixel_stride,
    mean_red,
    mean_green,
    mean_blue,
    std_red,
    std_green,
    std_blue,
    GREY_FIRST: tl.constexpr,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(0)
    crop = crops + image.to(tl.int64) * crop_stride
    target = out + image.to(tl.int64) * out_stride
    order += image * 4
    brightness = tl.load(jitter + image * 4)
    contrast = tl.load(jitter + image * 4 + 1)
    saturation = tl.load(jitter + image * 4 + 2)
    hue = tl.load(jitter + image * 4 + 3)
    is_grey = tl.load(grey + image) != 0
    # Contrast needs the mean of the whole image as it is when its turn comes.
    turn = 0
    for number in tl.static_range(4):
        turn += tl.where(tl.load(order + number) == 1, number, 0)
    total = tl.zeros((PIXELS,), tl.float32)
    if contrast != 1.0:
        for first in range(0, pixels, PIXELS):
            pixel = first + tl.arange(0, PIXELS)
            inside = pixel < pixels
            red, green, blue = _read(crop, pixel, inside, channel_stride, pixel_stride, GREY_FIRST and is_grey)
            red, green, blue = _jittered(red, green, blue, order, brightness, contrast, saturation, hue, 0.0, turn)
            total += tl.where(inside, _luma(red, green, blue), 0.0)
    mean = tl.sum(total, 0) / pixels
    for first in range(0, pixels, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        inside = pixel < pixels
        red, green, blue = _read(crop, pixel, inside, channel_stride, pixel_stride, GREY_FIRST and is_grey)
        red, green, blue = _jittered(red, green, blue, order, brightness, contrast, saturation, hue, mean, 4)
        if not GREY_FIRST:
            if is_grey:
                luma = _luma(red, green, blue)
                red, green, blue = luma, luma, luma
        place = target + pixel * out_pixel_stride
        kind = out.dtype.element_ty
        tl.store(place, ((red - mean_red) / std_red).to(kind), inside)
        tl.store(place + out_channel_stride, ((green - mean_green) / std_green).to(kind), inside)
        tl.store(place + 2 * out_channel_stride, ((blue - mean_blue) / std_blue).to(kind), inside)
