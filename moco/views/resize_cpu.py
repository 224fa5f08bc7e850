"""Crops of small images on a CPU, resized with anti-aliasing, in PyTorch's fixed-point arithmetic: the same bytes.

PyTorch's own kernel, called for each crop, takes 50 us for the call alone.
"""

import math

import numpy as np
import torch
from torch import Tensor

from moco.contrast.compiled import compiled
from moco.contrast.threads import in_threads

_TOGETHER = 32
"""Crops that a thread makes before it takes the next ones."""


def crop_and_resize_small(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """`crop_and_resize` of a tensor of images: uint8 (n, 3, size, size)."""
    crops = torch.empty((len(box), 3, size, size), dtype=torch.uint8)
    pixels, boxes, flips = images.numpy(), box.contiguous().numpy(), flip.contiguous().numpy()
    out, longest = crops.numpy(), int(box[:, 2:].max()) if len(box) else 0

    def work(first: int, last: int) -> None:
        _resize(pixels, boxes, flips, size, longest, first, last, out)

    in_threads(work, len(box), _TOGETHER)
    return crops


@compiled
def _resize(images, boxes, flips, size, longest, first, last, out):
    most = math.ceil(2 * max(1.0, longest / size)) + 1
    x_first, x_taps, x_weights = np.empty(size, np.int64), np.empty(size, np.int64), np.empty((size, most), np.int32)
    y_first, y_taps, y_weights = np.empty(size, np.int64), np.empty(size, np.int64), np.empty((size, most), np.int32)
    shares = np.empty((size, most), np.float64)
    lines = np.empty((longest, size), np.uint8)
    sums = np.empty(size, np.int32)
    for number in range(first, last):
        top, left, height, width = boxes[number]
        image = images[number % len(images)]
        x_bits = _taps(width, flips[number], shares, x_first, x_taps, x_weights)
        y_bits = _taps(height, False, shares, y_first, y_taps, y_weights)
        x_half, y_half = 1 << (x_bits - 1), np.int32(1 << (y_bits - 1))
        for channel in range(3):
            for y in range(height):
                row = image[channel, top + y]
                for x in range(size):
                    total, start = x_half, left + x_first[x]
                    for tap in range(x_taps[x]):
                        total += row[start + tap] * x_weights[x, tap]
                    lines[y, x] = min(total >> x_bits, 255)
            for y in range(size):
                sums[:] = y_half
                for tap in range(y_taps[y]):
                    weight, line = y_weights[y, tap], lines[y_first[y] + tap]
                    for x in range(size):
                        sums[x] += np.int32(line[x]) * weight
                for x in range(size):
                    out[number, channel, y, x] = min(sums[x] >> y_bits, 255)


@compiled
def _taps(length, reverse, shares, first, taps, weights):
    """As `_taps` of `operations.py`: of each resized pixel the first source pixel, how many, and their weights. Returns
    the bits after the point."""
    size = len(first)
    scale = length / size
    support = max(scale, 1.0)
    largest = 0.0
    for target in range(size):
        place = size - 1 - target if reverse else target
        centre = scale * (place + 0.5)
        start, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        total = 0.0
        for tap in range(end - start):
            share = max(1 - abs((start + tap - centre + 0.5) * (1 / support)), 0.0)
            shares[target, tap] = share
            total += share
        for tap in range(end - start):
            shares[target, tap] /= total
            largest = max(largest, shares[target, tap])
        first[target], taps[target] = start, end - start
    bits = 0
    while bits < 22 and int(largest * (2 << bits) + 0.5) < 2**15:
        bits += 1
    for target in range(size):
        for tap in range(taps[target]):
            weights[target, tap] = int(shares[target, tap] * (1 << bits) + 0.5)
    return bits
