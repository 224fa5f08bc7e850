"""Images and their objects resized and flipped together.

Sizes, rounding and order (resize, flip, clip, leave out what is empty) are Detectron2's, so its numbers are met.
"""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco.transfer.detection.instances import Polygons, Target
from moco.views.counter_rng import uniform

_STREAM = 0x6400
"""Of random numbers that no view of an image draws from."""


def choose(seed: int, epoch: int, index: Tensor, sides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The shorter side and whether to flip, of each image: a pure function of (seed, epoch, index).

    Args:
        index: int64 (n,), the images' numbers in their set.
        sides: one of them, each as likely.

    Returns int64 (n,) and bool (n,), half of which are flipped.
    """
    numbers = uniform(seed, index, 2, epoch=epoch, stream=_STREAM)
    place = (numbers[:, 0] * len(sides)).long().clamp(max=len(sides) - 1)
    return torch.tensor(sides)[place.cpu()], (numbers[:, 1] < 0.5).cpu()


def resized(height: int, width: int, side: int, maximum: int = 1333) -> tuple[int, int]:
    """Height and width with the shorter one `side`, or less where the longer one would exceed `maximum`."""
    scale = side / min(height, width)
    new = (float(side), scale * width) if height < width else (scale * height, float(side))
    if max(new) > maximum:
        scale = maximum / max(new)
        new = (new[0] * scale, new[1] * scale)
    return max(int(new[0] + 0.5), 1), max(int(new[1] + 0.5), 1)


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, h, w) to (3, height, width), bilinear as Pillow does, which smooths where it shrinks."""
    if image.shape[1:] == (height, width):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def transform(
    image: Tensor,
    target: Target,
    side: int,
    maximum: int = 1333,
    flip: bool = False,
    flipped_keypoints: list[int] | None = None,
) -> tuple[Tensor, Target]:
    """An image and its objects resized, then flipped; boxes clipped, and objects without area left out.

    Args:
        image: uint8 (3, h, w).
        side, maximum: as in `resized`.
        flipped_keypoints: which keypoint comes in the place of each in the mirror: left and right exchanged.

    Returns uint8 (3, height, width), and the target in its pixels.
    """
    old = int(image.shape[1]), int(image.shape[2])
    height, width = resized(*old, side, maximum)
    # In float64 until all is done, as Detectron2.
    target = resize_target(_of_dtype(target, torch.float64), old, (height, width))
    image = resize_image(image, height, width)
    if flip:
        image, target = image.flip(2), flip_target(target, width, flipped_keypoints)
    return image.contiguous(), nonempty(_of_dtype(clip_target(target, height, width), torch.float32))


def _of_dtype(target: Target, dtype: torch.dtype) -> Target:
    keypoints = None if target.keypoints is None else target.keypoints.to(dtype)
    return replace(target, boxes=target.boxes.to(dtype), keypoints=keypoints)


def resize_target(target: Target, old: tuple[int, int], new: tuple[int, int]) -> Target:
    """The objects of an image of `old` (height, width), resized to `new`; bitmaps by the nearest pixel."""
    scale = np.array([new[1] / old[1], new[0] / old[0]])
    boxes = target.boxes * torch.from_numpy(np.tile(scale, 2)).to(target.boxes)
    keypoints = target.keypoints
    if keypoints is not None:
        keypoints = keypoints * torch.from_numpy(np.append(scale, 1)).to(keypoints)
    masks = target.masks
    if isinstance(masks, Tensor):
        rows, columns = (((torch.arange(n) + 0.5) * (o / n)).long() for o, n in zip(old, new, strict=True))
        masks = masks[:, rows][:, :, columns]
    elif masks is not None:
        masks = [[p * np.tile(scale, len(p) // 2) for p in polygons] for polygons in masks]
    return replace(target, boxes=boxes, masks=masks, keypoints=keypoints)


def flip_target(target: Target, width: int, flipped_keypoints: list[int] | None = None) -> Target:
    """The objects in the mirror, of an image of this width; `flipped_keypoints` as in `transform`."""
    x1, y1, x2, y2 = target.boxes.unbind(1)
    boxes = torch.stack((width - x2, y1, width - x1, y2), 1)
    keypoints = target.keypoints
    if keypoints is not None:
        if flipped_keypoints is not None:
            keypoints = keypoints[:, flipped_keypoints]
        keypoints = torch.stack((width - keypoints[..., 0], *keypoints[..., 1:].unbind(-1)), -1)
    masks = target.masks
    if isinstance(masks, Tensor):
        masks = masks.flip(2)
    elif masks is not None:
        masks = [[_mirrored(p, width) for p in polygons] for polygons in masks]
    return replace(target, boxes=boxes, masks=masks, keypoints=keypoints)


def _mirrored(polygon: np.ndarray, width: int) -> np.ndarray:
    mirrored = polygon.copy()
    mirrored[0::2] = width - mirrored[0::2]
    return mirrored


def clip_target(target: Target, height: int, width: int) -> Target:
    """Boxes clipped to the image; keypoints outside it count as not annotated, and are 0. Polygons stay whole."""
    limit = target.boxes.new_tensor([width, height])
    boxes = target.boxes.clamp(min=0).minimum(limit.repeat(2))
    keypoints = target.keypoints
    if keypoints is not None:
        place = keypoints[..., :2]
        valid = ((place >= 0) & (place <= limit)).all(-1) & (keypoints[..., 2] > 0)
        keypoints = keypoints * valid[..., None]
    return replace(target, boxes=boxes, keypoints=keypoints)


def nonempty(target: Target, threshold: float = 1e-5) -> Target:
    """Without the objects whose box is no wider or higher than `threshold`, or whose mask has nothing in it."""
    kept = (target.boxes[:, 2:] - target.boxes[:, :2] > threshold).all(1)
    if isinstance(target.masks, Tensor):
        kept &= target.masks.flatten(1).any(1)
    elif target.masks is not None:
        kept &= torch.tensor([bool(polygons) for polygons in target.masks], dtype=torch.bool)
    return select(target, kept.nonzero()[:, 0])


def select(target: Target, rows: Tensor) -> Target:
    """The objects of these rows, int64 (m,), in this order."""
    masks: list[Polygons] | Tensor | None = target.masks
    if isinstance(masks, list):
        masks = [masks[row] for row in rows.tolist()]
    elif masks is not None:
        masks = masks[rows]
    keypoints = None if target.keypoints is None else target.keypoints[rows]
    return Target(target.boxes[rows], target.classes[rows], masks, keypoints)
