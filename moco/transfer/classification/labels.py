"""Which labelled images are trained on: of every class alike, fixed by the seed, smaller subsets within larger ones."""

import torch
from torch import Tensor

from moco.data import shuffled
from moco.runtime.errors import UserError
from moco.transfer.config import number_of


def labelled(labels: Tensor, wanted: str, seed: int, classes: list[str]) -> Tensor:
    """The images that `--labels` takes.

    Args:
        labels: int64 (n,), the class of each image, all in 0 .. len(classes) - 1.
        wanted: all, a number of images a class (20), or a share of each class (10%), rounded.
        seed: which of them. Of each class the first ones of a random order are taken, so what a smaller number takes
            is a part of what a larger one does.
        classes: their names.

    Returns int64 (m,), ascending positions. Raises UserError where a class has fewer images than wanted, or none.
    """
    if wanted == "all":
        return torch.arange(len(labels))
    share = wanted.endswith("%")
    number_of(wanted, 1)
    chosen = []
    for label, name in enumerate(classes):
        own = (labels == label).nonzero()[:, 0]
        if not len(own):
            continue  # a class without training images: what the data lack, no matter how many labels
        number = round(float(wanted[:-1]) / 100 * len(own)) if share else int(wanted)
        if number > len(own):
            raise UserError(f"--labels {wanted}: class {name} has {len(own)} training images: give fewer, or a share")
        if number == 0:
            raise UserError(
                f"--labels {wanted}: leaves class {name}, of {len(own)} training images, without any: give more"
            )
        chosen.append(own[shuffled(torch.arange(number), len(own), seed, 2, label)])
    return torch.cat(chosen).sort().values


def imbalance(counts: list[int], classes: list[str]) -> str:
    """How unequal the classes are, in words; "" where the largest has less than twice the images of the smallest."""
    most, least = counts.index(max(counts)), counts.index(min(counts))
    if counts[most] < 2 * counts[least]:
        return ""
    return (
        f"classes are unequal: {counts[most]:,} training images of {classes[most]}, {counts[least]:,} of "
        f"{classes[least]}: the mean of classes counts each alike"
    )
