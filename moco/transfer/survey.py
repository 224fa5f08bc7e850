"""What is in a set of annotated images: what every kind of annotation has in common."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moco.data import shuffled
from moco.runtime.errors import UserError


@dataclass
class AnnotationSurvey:
    """Counts over the images examined.

    Attributes:
        total: images in the set.
        examined: the numbers of those that can be read, in random order.
        shorter_sides: of the images, in pixels.
        broken: what is wrong with each image that cannot be read.
    """

    total: int
    examined: list[int] = field(default_factory=list)
    shorter_sides: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def annotations(self) -> list[tuple[str, str]]:
        """The lines of the table about what is annotated."""
        raise NotImplementedError

    def rows(self) -> list[tuple[str, str]]:
        """The lines of a table: a property and its value."""
        n = len(self.examined) + len(self.broken)
        some = "" if n == self.total else f"; the rest of the table is of {n:,}, sampled at random"
        more = [f"... and {len(self.broken) - 10:,} more"] if len(self.broken) > 10 else []
        return [
            ("images", f"{self.total:,}{some}"),
            ("shorter side", f"least / median / most: {least_median_most(self.shorter_sides)} pixels"),
            *self.annotations(),
            ("broken", "\n".join([f"{len(self.broken):,}:", *self.broken[:10], *more]) if self.broken else "none"),
        ]

    def examine(
        self, read: Callable[[int], Tensor], sample: int, progress: Callable[[list[int]], Iterable[int]] = iter
    ) -> None:
        """Decodes every image.

        Args:
            read: an image, uint8 (3, height, width), after what is annotated on it was counted; UserError if it is
                broken.
            sample: how many images at most, at random; 0: all.
            progress: wraps the numbers of the images.
        """
        count = min(sample or self.total, self.total)
        for index in progress(shuffled(torch.arange(count), self.total, 0, 0).tolist()):
            try:
                image = read(index)
            except UserError as error:
                self.broken.append(str(error))
                continue
            self.examined.append(index)
            self.shorter_sides.append(int(min(image.shape[1:])))


def least_median_most(values: list[int]) -> str:
    """`1 / 2 / 7`."""
    ordered = sorted(values) or [0]
    return " / ".join(f"{value:,}" for value in (ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]))
