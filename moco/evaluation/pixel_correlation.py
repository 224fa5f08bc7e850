"""How alike the pixels of two images are: the correlation of small grey versions, over small shifts and mirrored."""

import torch
import torch.nn.functional as F
from torch import Tensor

THUMB, SHIFT, LOCAL = 32, 2, 9
"""Pixels: the side of the grey version, how far it is shifted, and the side of the squares whose mean is removed."""


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of the local contrasts of grey images, the best over shifts by up to `SHIFT` and mirroring.

    The local contrast is a pixel less the mean of the square around it: light above and dark below, as in all pictures
    of ships at sea, is no likeness. 1 - correlation is half the mean squared distance of the contrasts, standardised;
    so brightness and contrast do not count. Of images of one colour each it is 1 if that is the same, else 0.

    Args:
        first, second: uint8 (n, THUMB, THUMB).

    Returns float32 (n,), in -1..1.
    """
    inner = slice(SHIFT, THUMB - SHIFT)
    side = THUMB - 2 * SHIFT
    best = torch.full((len(first),), -1.0)
    means = [images.float().mean(dim=(1, 2)) for images in (first, second)]
    first, second = _local_contrast(first), _local_contrast(second)
    fixed, flat = _standardised(first[:, inner, inner])
    also_flat = _standardised(second[:, inner, inner])[1]
    for other in (second, second.flip(2)):
        for down in range(2 * SHIFT + 1):
            for right in range(2 * SHIFT + 1):
                moved, _ = _standardised(other[:, down : down + side, right : right + side])
                best = torch.maximum(best, (fixed * moved).sum(dim=1))
    same = (means[0] - means[1]).abs() < 2
    return torch.where(flat & also_flat & same, 1.0, best).clamp(-1, 1)


def _local_contrast(images: Tensor) -> Tensor:
    """Of grey images, uint8 (n, h, w), each pixel less the mean around it: float32 (n, h, w)."""
    pixels = images.float()[:, None]
    around = F.avg_pool2d(pixels, LOCAL, stride=1, padding=LOCAL // 2, count_include_pad=False)
    return (pixels - around)[:, 0]


def _standardised(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (n, p) of mean 0 and length 1, and which images are of one colour."""
    pixels = images.flatten(1)
    pixels = pixels - pixels.mean(dim=1, keepdim=True)
    flat = pixels.square().mean(dim=1).sqrt() < 1
    return F.normalize(pixels, dim=1).masked_fill(flat[:, None], 0), flat


def thumb(image: Tensor) -> Tensor:
    """The grey version (ITU-R BT.601) of an image, uint8 (3, h, w): uint8 (THUMB, THUMB)."""
    grey = (image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)
    if grey.shape != (THUMB, THUMB):
        grey = F.interpolate(grey[None, None], (THUMB, THUMB), mode="bilinear", antialias=True)[0, 0]
    return grey.round().clamp(0, 255).to(torch.uint8)
