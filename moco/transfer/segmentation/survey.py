"""What is in a set of images with a class for every pixel."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from moco.transfer.segmentation.fcn import IGNORED
from moco.transfer.segmentation.sets import SegmentationSet
from moco.transfer.survey import AnnotationSurvey


@dataclass
class SegmentationSurvey(AnnotationSurvey):
    """Counts over the images examined.

    Attributes:
        pixels: of each class name how many.
        images: of each class name how many images have it.
        ignored: pixels without a class.
    """

    pixels: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    ignored: int = 0

    def annotations(self) -> list[tuple[str, str]]:
        total = max(sum(self.pixels.values()) + self.ignored, 1)
        found = [name for name, count in self.images.items() if count]
        shares = sorted(found, key=lambda name: -self.pixels[name])
        per_class = ", ".join(f"{name} {self.pixels[name] / total:.1%} ({self.images[name]:,})" for name in shares)
        return [
            ("classes", f"{len(found)} of {len(self.pixels)}; share of the pixels (images): {per_class}"),
            ("not in the set", ", ".join(name for name in self.pixels if name not in found) or "none"),
            ("ignored", f"{self.ignored / total:.1%} of the pixels"),
        ]


def survey_segmentation(
    images: SegmentationSet, sample: int, progress: Callable[[list[int]], Iterable[int]] = iter
) -> SegmentationSurvey:
    """Examines a set: image and mask are decoded, pixels counted. Arguments as of `AnnotationSurvey.examine`."""
    none = dict.fromkeys(images.classes, 0)
    found = SegmentationSurvey(len(images), pixels=dict(none), images=dict(none))

    def read(index: int) -> Tensor:
        image, labels = images.read(index)
        counts = labels.flatten().bincount(minlength=IGNORED + 1).tolist()
        found.ignored += counts[IGNORED]
        for name, count in zip(images.classes, counts, strict=False):
            found.pixels[name] += count
            found.images[name] += count > 0
        return image

    found.examine(read, sample, progress)
    return found
