"""An image and its labels scaled, cropped and flipped together (appendix A.5)."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco.transfer.detection.transforms import resize_image
from moco.transfer.segmentation.fcn import IGNORED
from moco.views.counter_rng import uniform
from moco.views.recipes import IMAGENET

SCALES = (0.5, 2.0)
"""The range of the random scale, each value as likely."""
CROPS = {"voc": 513, "cityscapes": 769}
"""The published sides of a crop, in pixels."""
_STREAM = 0x6500
"""Of random numbers that neither views nor detection draw from."""


def draw(seed: int, epoch: int, index: Tensor) -> Tensor:
    """What `augment` needs for each image, a pure function of (seed, epoch, index).

    Args:
        index: int64 (n,), the images' numbers in their set.

    Returns float32 (n, 4) in [0, 1): scale, place of the crop from top to bottom and from left to right, flip.
    """
    return uniform(seed, index, 4, epoch=epoch, stream=_STREAM)


def augment(
    image: Tensor, labels: Tensor, numbers: Tensor, crop: int, mean: Sequence[float] = IMAGENET[0]
) -> tuple[Tensor, Tensor]:
    """An image and its labels at a random scale, a random crop of them, and that flipped or not.

    Where the scaled image is smaller than the crop it is padded on the right and below, by the mean colour and 255.

    Args:
        image: uint8 (3, h, w).
        labels: uint8 (h, w).
        numbers: (4,), a row of `draw`.
        crop: side of the crop in pixels.
        mean: colour of the images, R, G and B in 0..1.

    Returns uint8 (3, crop, crop) and uint8 (crop, crop).
    """
    share, down, right, mirror = numbers.tolist()
    scale = SCALES[0] + share * (SCALES[1] - SCALES[0])
    height, width = (max(int(side * scale + 0.5), 1) for side in labels.shape)
    image, labels = resize_image(image, height, width), resize_labels(labels, height, width)
    top, left = int(down * (max(height - crop, 0) + 1)), int(right * (max(width - crop, 0) + 1))
    cropped = torch.tensor(mean).mul(255).round().byte()[:, None, None].repeat(1, crop, crop)
    cropped_labels = labels.new_full((crop, crop), IGNORED)
    window = slice(top, top + crop), slice(left, left + crop)
    filled = slice(min(height, crop)), slice(min(width, crop))
    cropped[:, *filled] = image[:, *window]
    cropped_labels[filled] = labels[window]
    return (cropped.flip(2), cropped_labels.flip(1)) if mirror < 0.5 else (cropped, cropped_labels)


def resize_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """uint8 (h, w) to (height, width), each the nearest pixel's, as Pillow does."""
    picture = Image.fromarray(labels.contiguous().numpy())
    return torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.NEAREST)))
