"""The colours of views on a CPU: all of `operations.py` on an image, which stays in its core's cache, then the next."""

import math

import numpy as np
import torch
from torch import Tensor

from moco.contrast.compiled import compiled, rounded_to_bf16
from moco.contrast.threads import in_threads
from moco.views.operations import SOLARISE_FROM, blur_kernels
from moco.views.parameters import Parameters

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
DTYPES = (torch.float32, torch.bfloat16)
"""Of the views."""
_TOGETHER = 2**17
"""Pixels that a thread works on before it takes the next ones."""
_SUMS = 64

# Numba computes with a Python number in double precision, so these are float32.
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_ZERO, _ONE, _TWO, _SIX, _BYTE = (np.float32(value) for value in (0, 1, 2, 6, 255))
_THIRD, _TWO_THIRDS, _TINY = np.float32(1 / 3), np.float32(2 / 3), np.float32(1e-30)
_OFFSETS = (np.float32(5 / 6), np.float32(3 / 6), np.float32(1 / 6))
_OFFSET_RED, _OFFSET_GREEN, _OFFSET_BLUE = _OFFSETS
_SOLARISE_FROM = np.float32(SOLARISE_FROM)


def finish(crops: Tensor, parameters: Parameters, grey_first: bool, normalisation: Normalisation, out: Tensor) -> None:
    """Writes finished views of the crops to `out`, an image a thread.

    Args:
        crops: uint8 (n, 3, height, width), contiguous or channels last.
        parameters: of each crop.
        grey_first: grey scale comes before the jitter (v1).
        normalisation: mean and standard deviation of the channels.
        out: of the same shape, one of `DTYPES`, contiguous or channels last.
    """
    n, _, height, width = crops.shape
    jitter, order, grey, sigma, solarise = (field.contiguous().numpy() for field in parameters[2:])
    rows, columns = (kernel.contiguous().numpy() for kernel in blur_kernels(parameters.sigma, height, width))
    mean, std = normalisation
    shift, factor = np.array(mean, np.float32), np.array([1 / each for each in std], np.float32)
    bytes_, step = _flat(crops)
    values, out_step = _flat(out)
    half = out.dtype == torch.bfloat16
    floats = np.empty(0, np.float32) if half else values.numpy()
    halves = values.view(torch.uint16).numpy() if half else np.empty(0, np.uint16)

    def work(first: int, last: int) -> None:
        _finish(
            (bytes_.numpy(), step, floats, halves, out_step, height, width),
            (first, last),
            (jitter, order, grey, sigma, solarise, rows, columns),
            (grey_first, shift, factor),
        )

    in_threads(work, n, max(1, _TOGETHER // max(1, height * width)))


def _flat(images: Tensor) -> tuple[Tensor, int]:
    """All values in the order of memory, and how far apart the pixels of a channel are: 1 or 3."""
    if images.is_contiguous():
        return images.view(-1), 1
    return images.permute(0, 2, 3, 1).view(-1), 3


@compiled
def _finish(memory, portion, drawn, constants):
    crops, step, floats, halves, out_step, height, width = memory
    jitter, order, grey, sigma, solarise, rows, columns = drawn
    grey_first, shift, factor = constants
    pixels = height * width
    planes = np.empty((3, pixels), np.float32)
    room = np.empty(pixels, np.float32)
    for image in range(portion[0], portion[1]):
        values = slice(3 * pixels * image, 3 * pixels * (image + 1))
        _read(crops[values], step, planes)
        if grey[image] and grey_first:
            _grey(planes)
        for place in range(4):
            which = order[image, place]
            change = jitter[image, which]
            if which == 0 and change != _ONE:
                _brightness(planes, change)
            elif which == 1 and change != _ONE:
                _contrast(planes, change)
            elif which == 2 and change != _ONE:
                _saturation(planes, change)
            elif which == 3 and change != _ZERO:
                _hue(planes, change)
        if grey[image] and not grey_first:
            _grey(planes)
        if sigma[image] > _ZERO:
            _blur(planes, room, height, width, rows[image], columns[image], math.ceil(4.5 * sigma[image]))
        if solarise[image]:
            _solarise(planes)
        for channel in range(3):
            mean, inverse = shift[channel], factor[channel]
            for i in range(pixels):
                planes[channel, i] = (planes[channel, i] - mean) * inverse
        if len(halves):
            _write_halves(planes.view(np.uint32), out_step, halves[values])
        else:
            _write(planes, out_step, floats[values])


@compiled
def _read(crop, step, planes):
    pixels = planes.shape[1]
    if step == 1:
        for channel in range(3):
            for i in range(pixels):
                planes[channel, i] = np.float32(crop[channel * pixels + i]) / _BYTE
    else:
        for i in range(pixels):
            planes[0, i] = np.float32(crop[3 * i]) / _BYTE
            planes[1, i] = np.float32(crop[3 * i + 1]) / _BYTE
            planes[2, i] = np.float32(crop[3 * i + 2]) / _BYTE


@compiled
def _write(planes, step, out):
    pixels = planes.shape[1]
    if step == 1:
        for channel in range(3):
            for i in range(pixels):
                out[channel * pixels + i] = planes[channel, i]
    else:
        for i in range(pixels):
            out[3 * i] = planes[0, i]
            out[3 * i + 1] = planes[1, i]
            out[3 * i + 2] = planes[2, i]


@compiled
def _write_halves(planes, step, out):
    pixels = planes.shape[1]
    if step == 1:
        for channel in range(3):
            for i in range(pixels):
                out[channel * pixels + i] = rounded_to_bf16(planes[channel, i])
    else:
        for i in range(pixels):
            out[3 * i] = rounded_to_bf16(planes[0, i])
            out[3 * i + 1] = rounded_to_bf16(planes[1, i])
            out[3 * i + 2] = rounded_to_bf16(planes[2, i])


@compiled
def _clamped(value):
    return min(max(value, _ZERO), _ONE)


@compiled
def _brightness(planes, change):
    for channel in range(3):
        for i in range(planes.shape[1]):
            planes[channel, i] = _clamped(planes[channel, i] * change)


@compiled
def _contrast(planes, change):
    grey = _mean(planes[0]) * _RED + _mean(planes[1]) * _GREEN + _mean(planes[2]) * _BLUE
    more = grey * (_ONE - change)
    for channel in range(3):
        for i in range(planes.shape[1]):
            planes[channel, i] = _clamped(planes[channel, i] * change + more)


@compiled
def _mean(plane):
    """In sums that are added to side by side, as the order is kept to."""
    sums = np.zeros(_SUMS, np.float32)
    whole = len(plane) // _SUMS * _SUMS
    for start in range(0, whole, _SUMS):
        for each in range(_SUMS):
            sums[each] += plane[start + each]
    total = 0.0
    for each in range(_SUMS):
        total += sums[each]
    for i in range(whole, len(plane)):
        total += plane[i]
    return np.float32(total / len(plane))


@compiled
def _saturation(planes, change):
    reds, greens, blues = planes[0], planes[1], planes[2]
    less = _ONE - change
    for i in range(len(reds)):
        red, green, blue = reds[i], greens[i], blues[i]
        more = (red * _RED + green * _GREEN + blue * _BLUE) * less
        reds[i] = _clamped(red * change + more)
        greens[i] = _clamped(green * change + more)
        blues[i] = _clamped(blue * change + more)


@compiled
def _hue(planes, shift):
    """`adjust_hue`, the same closed form."""
    reds, greens, blues = planes[0], planes[1], planes[2]
    turn = shift + _TWO  # keeps it positive
    for i in range(len(reds)):
        red, green, blue = reds[i], greens[i], blues[i]
        high, low = max(max(red, green), blue), min(min(red, green), blue)
        chroma = high - low
        inverse = _ONE / max(_SIX * chroma, _TINY)
        of_red, of_green = (green - blue) * inverse, (blue - red) * inverse + _THIRD
        of_blue = (red - green) * inverse + _TWO_THIRDS
        hue = (of_red if red == high else (of_green if green == high else of_blue)) + turn
        reds[i] = _channel(hue + _OFFSET_RED, low, chroma)
        greens[i] = _channel(hue + _OFFSET_GREEN, low, chroma)
        blues[i] = _channel(hue + _OFFSET_BLUE, low, chroma)


@compiled
def _channel(hue, low, chroma):
    fraction = hue - np.float32(np.int32(hue))
    return low + chroma * _clamped(abs(_SIX * fraction - _TWO) - _ONE)


@compiled
def _grey(planes):
    reds, greens, blues = planes[0], planes[1], planes[2]
    for i in range(len(reds)):
        luma = reds[i] * _RED + greens[i] * _GREEN + blues[i] * _BLUE
        reds[i] = luma
        greens[i] = luma
        blues[i] = luma


@compiled
def _blur(planes, room, height, width, rows, columns, reach):
    """Both directions; the kernels are symmetric, so two pixels share a weight."""
    centre_row, centre_column = len(rows) // 2, len(columns) // 2
    across, down = min(reach, centre_column), min(reach, centre_row)
    line = np.empty(width + 2 * across, np.float32)
    for channel in range(3):
        plane = planes[channel]
        for y in range(height):
            row = plane[y * width : (y + 1) * width]
            for x in range(width):
                line[across + x] = row[x]
            for x in range(across):  # edges are reflected
                line[x] = line[2 * across - x]
                line[across + width + x] = line[across + width - 2 - x]
            _weighted(line[across : across + width], columns[centre_column], room[y * width : (y + 1) * width])
            for tap in range(1, across + 1):
                before, after = line[across - tap : across - tap + width], line[across + tap : across + tap + width]
                _add_weighted(before, after, columns[centre_column + tap], room[y * width : (y + 1) * width])
        for y in range(height):
            row = plane[y * width : (y + 1) * width]
            _weighted(room[y * width : (y + 1) * width], rows[centre_row], row)
            for tap in range(1, down + 1):
                above, below = abs(y - tap), y + tap
                if below >= height:
                    below = 2 * (height - 1) - below
                before = room[above * width : (above + 1) * width]
                after = room[below * width : (below + 1) * width]
                _add_weighted(before, after, rows[centre_row + tap], row)


@compiled
def _weighted(values, weight, out):
    for x in range(len(out)):
        out[x] = values[x] * weight


@compiled
def _add_weighted(before, after, weight, out):
    for x in range(len(out)):
        out[x] += (before[x] + after[x]) * weight


@compiled
def _solarise(planes):
    for channel in range(3):
        for i in range(planes.shape[1]):
            value = planes[channel, i]
            planes[channel, i] = _ONE - value if value >= _SOLARISE_FROM else value
