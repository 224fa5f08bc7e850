"""What is in a set of images with annotated objects."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from moco.transfer.detection.dataset import DetectionSet
from moco.transfer.survey import AnnotationSurvey, least_median_most


@dataclass
class DetectionSurvey(AnnotationSurvey):
    """Counts over the images examined.

    Attributes:
        objects: of each of them how many objects there are to train on.
        per_class: of each class name how many.
        masks, keypoints: whether objects have them.
    """

    objects: list[int] = field(default_factory=list)
    per_class: Counter[str] = field(default_factory=Counter)
    masks: bool = False
    keypoints: bool = False

    def annotations(self) -> list[tuple[str, str]]:
        has = [name for name, there in (("boxes", True), ("masks", self.masks), ("keypoints", self.keypoints)) if there]
        per_class = ", ".join(f"{name} {count:,}" for name, count in self.per_class.most_common())
        objects = f"{sum(self.objects):,} with {', '.join(has)}; least / median / most"
        return [
            ("objects", f"{objects}: {least_median_most(self.objects)}"),
            ("without objects", f"{self.objects.count(0):,} images"),
            ("classes", f"{sum(count > 0 for count in self.per_class.values())} of {len(self.per_class)}: {per_class}"),
        ]


def survey_detection(
    images: DetectionSet, sample: int, progress: Callable[[list[int]], Iterable[int]] = iter
) -> DetectionSurvey:
    """Examines a set: every image is decoded, its objects are counted. Arguments as of `AnnotationSurvey.examine`."""
    found = DetectionSurvey(len(images), per_class=Counter(dict.fromkeys(images.classes, 0)))

    def read(index: int) -> Tensor:
        pixels, target = images.image(index), images.target(index)
        found.objects.append(len(target))
        found.per_class.update(images.classes[label] for label in target.classes.tolist())
        found.masks |= target.masks is not None
        found.keypoints |= target.keypoints is not None
        return pixels

    found.examine(read, sample, progress)
    return found
