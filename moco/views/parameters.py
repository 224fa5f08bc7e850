"""What the random operations of views are, for a whole batch: pure functions of (seed, epoch, image index, view)."""

import itertools
from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from moco.views.counter_rng import uniform
from moco.views.recipes import Pretext

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ORDERS = tuple(itertools.permutations(range(4)))
_IDENTITY = (1.0, 1.0, 1.0, 0.0)
_ATTEMPTS = 10
"""How often torchvision's RandomResizedCrop tries before it takes the centre."""


class Parameters(NamedTuple):
    """The operations of n views, each field's first dimension n, all on one device."""

    box: Tensor
    """int64 (n, 4): the crop's top, left, height and width in pixels."""
    flip: Tensor
    """bool (n,)."""
    jitter: Tensor
    """float32 (n, 4): factors of brightness, contrast and saturation, shift of hue in turns; 1, 1, 1, 0 is none."""
    order: Tensor
    """int64 (n, 4): which of the four jitters comes first, second, third, last."""
    grey: Tensor
    """bool (n,)."""
    sigma: Tensor
    """float32 (n,): the blur's standard deviation in pixels; 0 is no blur."""
    solarise: Tensor
    """bool (n,)."""

    def take(self, rows: slice | Tensor) -> "Parameters":
        return Parameters(*(field[rows] for field in self))


@lru_cache(maxsize=256)
def constant(numbers: Hashable, device: torch.device) -> Tensor:
    """Numbers, in tuples, as a tensor; made once for a device, as a GPU is waited for while they are sent there."""
    return torch.tensor(numbers, device=device)


def draw_parameters(
    pretexts: tuple[Pretext, ...], seed: int, epoch: int | Tensor, index: Tensor, height: Tensor, width: Tensor
) -> Parameters:
    """The operations of all views of each image: view 0 of every image, then view 1 of every image, and so on.

    Args:
        pretexts: the distributions to draw from, one for each view; they differ in numbers alone.
        seed: of the run.
        epoch: of the run, one for all or int64 (n,).
        index: int64 (n,), the images' numbers in their data set.
        height, width: int64 (n,), the images' sizes in pixels.
    """
    views, n = len(pretexts), len(index)
    index, height, width = (numbers.repeat(views) for numbers in (index, height, width))
    epoch = epoch.repeat(views) if isinstance(epoch, Tensor) else epoch
    view = torch.arange(views, device=index.device).repeat_interleave(n)

    def of(field: str) -> Tensor:
        """A field of each view's pretext, (views * n, ...)."""
        return constant(tuple(getattr(pretext, field) for pretext in pretexts), index.device)[view]

    numbers = uniform(seed, index, 2 * _ATTEMPTS + 13, epoch=epoch, stream=view)
    crop, rest = numbers[:, : 2 * _ATTEMPTS], numbers[:, 2 * _ATTEMPTS :]
    row, column, flip, apply, order, grey, blur, sigma = rest[:, :8].unbind(dim=1)
    strength = of("jitter")
    low, high = (1 - strength).clamp(min=0), 1 + strength
    low[:, HUE], high[:, HUE] = -strength[:, HUE], strength[:, HUE]
    jitter = low + (high - low) * rest[:, 8:12]
    jittered = (apply < of("jitter_probability"))[:, None]
    least, most = of("sigma").unbind(dim=1)
    boxes = _crop_boxes(of("area"), of("log_ratio"), crop, row, column, height, width)
    return Parameters(
        box=boxes,
        flip=flip < of("flip_probability"),
        jitter=torch.where(jittered, jitter, constant(_IDENTITY, index.device)),
        order=constant(_ORDERS, index.device)[(order * len(_ORDERS)).long()],
        grey=grey < of("grey_probability"),
        sigma=torch.where(blur < of("blur_probability"), least + (most - least) * sigma, 0.0),
        solarise=rest[:, 12] < of("solarise_probability"),
    )


def only_crops(box: Tensor) -> Parameters:
    """Nothing but crops, int64 (n, 4)."""
    n, device = len(box), box.device
    no = torch.zeros(n, dtype=torch.bool, device=device)
    jitter, order = (constant(row, device).expand(n, 4) for row in (_IDENTITY, _ORDERS[0]))
    return Parameters(box, no, jitter, order, no, sigma=torch.zeros(n, device=device), solarise=no)


def _crop_boxes(
    areas: Tensor, log_ratios: Tensor, numbers: Tensor, row: Tensor, column: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """torchvision's RandomResizedCrop.get_params for a batch: int64 (n, 4), the first of the attempts that fits."""
    (low, high), (log_low, log_high) = areas[:, :, None].unbind(dim=1), log_ratios[:, :, None].unbind(dim=1)
    area = (height * width)[:, None] * (low + (high - low) * numbers[:, :_ATTEMPTS])
    ratio = torch.exp(log_low + (log_high - log_low) * numbers[:, _ATTEMPTS:])
    tried_width, tried_height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (tried_width > 0) & (tried_width <= width[:, None]) & (tried_height > 0) & (tried_height <= height[:, None])
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    fitted = fits.any(dim=1)
    # None fits: the largest central crop whose shape is allowed.
    ratio_low, ratio_high = torch.exp(log_ratios).unbind(dim=1)
    fallback_width = torch.minimum(width, (height * ratio_high).round().long())
    fallback_height = torch.minimum(height, (width / ratio_low).round().long())
    h = torch.where(fitted, tried_height.gather(1, first)[:, 0], fallback_height)
    w = torch.where(fitted, tried_width.gather(1, first)[:, 0], fallback_width)
    top = torch.where(fitted, (row * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(fitted, (column * (width - w + 1)).long(), (width - w) // 2)
    return torch.stack((top, left, h, w), dim=1)
