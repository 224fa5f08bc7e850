"""Masks of objects: polygons, bitmaps and COCO's run lengths, cropped to boxes and pasted back.

Run lengths count pixels column by column, first those outside, then those inside, and so on.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from moco.contrast.kernels import kernels
from moco.runtime.errors import UserError
from moco.transfer.detection.instances import Polygons

Rle = dict[str, Any]
"""{"size": [height, width], "counts": COCO's string, or a list of run lengths}"""

_BLOCK = 2**22
"""Pixels pasted at once."""


def library(name: str) -> Any:
    """A module of faster-coco-eval, whose drawing of polygons is pycocotools'. Raises UserError where it is absent."""
    try:
        return import_module(f"faster_coco_eval.{name}")
    except ImportError as error:
        raise UserError(
            "polygons and COCO's metrics need faster-coco-eval: pip install 'momentum-contrast[detection]'"
        ) from error


def draw_polygons(objects: list[Polygons], height: int, width: int) -> Tensor:
    """Polygons as pixels, bool (n, height, width); the polygons of an object are united."""
    return _draw([p for polygons in objects for p in polygons], [len(polygons) for polygons in objects], height, width)


def _draw(polygons: Sequence[np.ndarray], counts: Sequence[int], height: int, width: int) -> Tensor:
    """Polygons in a row, so many of each object, drawn: bool (n, height, width)."""
    each = np.asarray(counts, dtype=np.int64)
    bitmaps = np.zeros((len(each), height, width), dtype=bool)
    if len(polygons):
        mask = library("core.mask")
        drawn = mask.decode(mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
        first = (each.cumsum() - each)[each > 0]
        bitmaps[each > 0] = np.logical_or.reduceat(drawn.transpose(2, 0, 1), first)
    return torch.from_numpy(bitmaps)


def polygons_to_bitmap(polygons: Polygons, height: int, width: int) -> Tensor:
    """One object's polygons as pixels, bool (height, width)."""
    return draw_polygons([polygons], height, width)[0]


def crop_polygons(polygons: list[Polygons], boxes: Tensor, size: int) -> Tensor:
    """The outlines drawn in their boxes, stretched to squares: the targets of a mask head.

    Args:
        polygons: of n objects.
        boxes: float32 (n, 4).
        size: pixels a side.

    Returns bool (n, size, size).
    """
    corners = boxes.cpu().numpy()
    # In float32, as the boxes are: a vertex on a pixel's edge may otherwise fall on the other side.
    scales = np.float32(size) / np.maximum(corners[:, 2:] - corners[:, :2], np.float32(0.1))
    flat = [polygon for outline in polygons for polygon in outline]
    if not flat:
        return torch.zeros(len(boxes), size, size, dtype=torch.bool, device=boxes.device)
    counts = [len(outline) for outline in polygons]
    lengths = [polygon.size for polygon in flat]
    owner = np.repeat(np.repeat(np.arange(len(polygons)), counts), np.asarray(lengths) // 2)
    points = (np.concatenate(flat).reshape(-1, 2) - corners[owner, :2]) * scales[owner]
    cropped = np.split(points.ravel(), np.cumsum(lengths)[:-1])
    return _draw(cropped, counts, size, size).to(boxes.device)


def crop_bitmaps(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The part of each mask in its box, stretched to a square, by aligned ROIAlign.

    Args:
        masks: bool (n, height, width).
        boxes: float32 (n, 4).
        size: pixels a side.

    Returns bool (n, size, size).
    """
    number = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    rois = torch.cat((number[:, None], boxes), 1)
    cropped: Tensor = roi_align(masks[:, None].to(boxes.dtype), rois, size, 1.0, 0, True)
    return cropped[:, 0] >= 0.5


def paste_masks(probabilities: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> Tensor:
    """Masks of boxes as masks of the image: bilinear between the centres of the mask's pixels, nothing outside.

    Takes time and memory by the boxes' area, not by the image's.

    Args:
        probabilities: (n, m, m), 0 to 1.
        boxes: (n, 4), in pixels of the image.

    Returns bool (n, height, width).
    """
    n, m = probabilities.shape[:2]
    result = torch.zeros(n, height, width, dtype=torch.bool, device=boxes.device)
    limit = boxes.new_tensor([width, height])
    low = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(limit).long()
    high = (boxes[:, 2:].ceil() + 1).clamp(min=0).minimum(limit).long()
    floats = probabilities.dtype == boxes.dtype == torch.float32
    if boxes.device.type == "cpu" and floats and (on_cpu := kernels("moco.transfer.detection.masks_cpu")) is not None:
        on_cpu.paste(probabilities, boxes, low, high, threshold, result)
        return result
    extent = (high - low).clamp(min=0)
    pixels = extent.prod(1)
    block = (pixels.cumsum(0) - 1).clamp(min=0) // _BLOCK
    for rows in (block == number for number in block.unique()):
        own = rows.nonzero()[:, 0]
        owner = own.repeat_interleave(pixels[own])
        first = (pixels[own].cumsum(0) - pixels[own]).repeat_interleave(pixels[own])
        place = torch.arange(len(owner), device=boxes.device) - first
        x = place % extent[owner, 0] + low[owner, 0]
        y = place // extent[owner, 0] + low[owner, 1]
        inside = (torch.stack((x, y), 1) + 0.5 - boxes[owner, :2]) / (boxes[owner, 2:] - boxes[owner, :2])
        # As grid_sample rounds: through -1..1 and back.
        sampled = _bilinear(probabilities, owner, ((inside * 2 - 1 + 1) * m - 1) / 2)
        result[owner, y, x] = sampled >= threshold
    return result


def _bilinear(planes: Tensor, owner: Tensor, place: Tensor) -> Tensor:
    """planes[owner] (n, m, m) at places (p, 2) as x, y; zero outside."""
    m = planes.shape[-1]
    low = place.floor()
    total = torch.zeros_like(place[:, 0])
    for dy in (0, 1):
        for dx in (0, 1):
            at = low + place.new_tensor([dx, dy])
            weight = (1 - (place - at).abs()).prod(1)
            valid = ((at >= 0) & (at < m)).all(1)
            x, y = at.clamp(0, m - 1).long().unbind(1)
            total += torch.where(valid, planes[owner, y, x] * weight, 0)
    return total


def polygon_area(polygons: Polygons) -> float:
    """In pixels: the shoelace formula, summed over the polygons."""
    points = (polygon.reshape(-1, 2) for polygon in polygons)
    return sum(0.5 * abs(float(p[:, 0] @ np.roll(p[:, 1], 1) - p[:, 1] @ np.roll(p[:, 0], 1))) for p in points)


def encode_masks(masks: Tensor) -> list[Rle]:
    """bool (n, height, width) as run lengths in COCO's string, as str."""
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    runs = library("core.mask").encode(columns)
    return [{"size": list(run["size"]), "counts": _text(run["counts"])} for run in runs]


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def run_lengths(counts: Any) -> np.ndarray:
    """COCO's counts, a string or a list, as int64 (runs,). Raises ValueError if they are neither."""
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not isinstance(counts, str):
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind != "i"):
            raise ValueError("counts are no whole numbers")
        return lengths.astype(np.int64)
    code = np.frombuffer(counts.encode("latin-1", "replace"), np.uint8).astype(np.int64) - 48
    if not len(code) or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError("counts are no run lengths")
    # Five bits a character, the lowest first; 32 is set in all but the last of a number, 16 there in a negative one.
    ends = np.flatnonzero(code & 32 == 0)
    first = np.concatenate(([0], ends[:-1] + 1))
    digit = np.arange(len(code)) - np.repeat(first, ends - first + 1)
    if digit.max() > 11:
        raise ValueError("counts are no run lengths")
    numbers = np.add.reduceat((code & 31) << (5 * digit), first)
    numbers -= np.where(code[ends] & 16, np.int64(1) << (5 * (digit[ends] + 1)), 0)
    # From the fourth on, each is the difference to the one before the last.
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def decode_rle(rle: Rle) -> Tensor:
    """Run lengths, compressed or not, as bool (height, width). Raises ValueError if they are not of that size."""
    (height, width), lengths = checked_runs(rle)
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return torch.from_numpy(np.ascontiguousarray(inside.reshape(width, height).T))


def checked_runs(rle: Rle) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width, and int64 (runs,). Raises ValueError if the runs are not of that size, or are none."""
    try:
        height, width = (int(side) for side in rle["size"])
        lengths = run_lengths(rle["counts"])
    except (KeyError, TypeError) as error:
        raise ValueError("run lengths have size and counts") from error
    if len(lengths) and lengths.min() < 0:
        raise ValueError("a run of negative length")
    if lengths.sum() != height * width:
        raise ValueError(f"the runs have {lengths.sum()} pixels, and {height} x {width} are {height * width}")
    return (height, width), lengths
