"""Masks pasted into their images on a CPU: what `paste_masks` computes, pixel by pixel, the same bits."""

import numpy as np
from torch import Tensor

from moco.contrast.compiled import compiled
from moco.contrast.threads import in_threads


def paste(probabilities: Tensor, boxes: Tensor, low: Tensor, high: Tensor, threshold: float, result: Tensor) -> None:
    """Sets the pixels of `result`, bool (n, height, width), that are in the masks.

    Args:
        probabilities: float32 (n, m, m).
        boxes: float32 (n, 4).
        low, high: int64 (n, 2) as x, y: which pixels a mask may have.
    """
    arrays = [tensor.contiguous().numpy() for tensor in (probabilities, boxes, low, high)]
    out = result.numpy()
    in_threads(lambda first, last: _paste(*arrays, np.float32(threshold), first, last, out), len(boxes), 1)


@compiled
def _paste(probabilities, boxes, low, high, threshold, first, last, out):
    one, two, half = np.float32(1), np.float32(2), np.float32(0.5)
    m = probabilities.shape[1]
    for number in range(first, last):
        plane = probabilities[number]
        x_start, y_start, x_end, y_end = boxes[number]
        for y in range(low[number, 1], high[number, 1]):
            y_place = (
                ((np.float32(y) + half - y_start) / (y_end - y_start) * two - one + one) * np.float32(m) - one
            ) / two
            y_low = np.floor(y_place)
            for x in range(low[number, 0], high[number, 0]):
                x_place = (
                    ((np.float32(x) + half - x_start) / (x_end - x_start) * two - one + one) * np.float32(m) - one
                ) / two
                x_low = np.floor(x_place)
                total = np.float32(0)
                for dy in range(2):
                    row = y_low + np.float32(dy)
                    if 0 <= row < m:
                        y_weight = one - abs(y_place - row)
                        for dx in range(2):
                            column = x_low + np.float32(dx)
                            if 0 <= column < m:
                                weight = (one - abs(x_place - column)) * y_weight
                                total += plane[int(row), int(column)] * weight
                out[number, y, x] = total >= threshold
