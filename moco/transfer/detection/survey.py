"""What is in a set of annotated images."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from moco.data import shuffled
from moco.runtime.errors import UserError
from moco.transfer.detection.dataset import DetectionSet


@dataclass
class DetectionSurvey:
    """Counts over the images examined.

    Attributes:
        total: images in the set.
        examined: the numbers of those that can be read, in random order.
        objects: of each of them how many objects there are to train on.
        per_class: of each class name how many.
        shorter_sides: of the images, in pixels.
        masks, keypoints: whether objects have them.
        broken: what is wrong with each image that cannot be read.
    """

    total: int
    examined: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    per_class: Counter[str] = field(default_factory=Counter)
    shorter_sides: list[int] = field(default_factory=list)
    masks: bool = False
    keypoints: bool = False
    broken: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """The lines of a table: a property and its value."""
        n = len(self.examined) + len(self.broken)
        some = "" if n == self.total else f"; the rest of the table is of {n:,}, sampled at random"
        has = [name for name, there in (("boxes", True), ("masks", self.masks), ("keypoints", self.keypoints)) if there]
        per_class = ", ".join(f"{name} {count:,}" for name, count in self.per_class.most_common())
        more = [f"... and {len(self.broken) - 10:,} more"] if len(self.broken) > 10 else []
        return [
            ("images", f"{self.total:,}{some}"),
            ("shorter side", f"least / median / most: {_three(self.shorter_sides)} pixels"),
            ("objects", f"{sum(self.objects):,} with {', '.join(has)}; least / median / most: {_three(self.objects)}"),
            ("without objects", f"{self.objects.count(0):,} images"),
            ("classes", f"{sum(count > 0 for count in self.per_class.values())} of {len(self.per_class)}: {per_class}"),
            ("broken", "\n".join([f"{len(self.broken):,}:", *self.broken[:10], *more]) if self.broken else "none"),
        ]


def _three(values: list[int]) -> str:
    ordered = sorted(values) or [0]
    return " / ".join(f"{value:,}" for value in (ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]))


def survey_detection(
    images: DetectionSet, sample: int, progress: Callable[[list[int]], Iterable[int]] = iter
) -> DetectionSurvey:
    """Examines a set: every image is decoded, its objects are counted.

    Args:
        sample: how many images at most, at random; 0: all.
        progress: wraps the numbers of the images.
    """
    found = DetectionSurvey(len(images), per_class=Counter(dict.fromkeys(images.classes, 0)))
    count = min(sample or len(images), len(images))
    for index in progress(shuffled(torch.arange(count), len(images), 0, 0).tolist()):
        try:
            pixels, target = images.image(index), images.target(index)
        except UserError as error:
            found.broken.append(str(error))
            continue
        found.examined.append(index)
        found.objects.append(len(target))
        found.per_class.update(images.classes[label] for label in target.classes.tolist())
        found.shorter_sides.append(int(min(pixels.shape[1:])))
        found.masks |= target.masks is not None
        found.keypoints |= target.keypoints is not None
    return found
