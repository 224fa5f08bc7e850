"""What a source is, and what one is opened with."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from moco.data.dataset import Encoded, ImageSet, in_memory
from moco.runtime.errors import UserError


@dataclass
class Source:
    """A data set: what is trained on and, where there is any, what is tested on.

    Labels are used only to evaluate. Without a test set of its own, a labelled source keeps every tenth image for it;
    not so one of remote shards, which are read through, whole.

    Attributes:
        train: the images trained on.
        test: the images tested on, or None.
        classes: their names, or None.
        bank: the labelled training images that evaluation uses, where they are others than `train`.
        whole: the images in their own order, where every tenth was held out for testing.
    """

    train: ImageSet
    test: ImageSet | None
    classes: list[str] | None
    bank: ImageSet | None = None
    whole: ImageSet | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if len(self.train) == 0:
            raise UserError("the data set has no training images")
        if self.test is None and self.train.labels is not None and len(self.train) >= 20 and self.train.random_access:
            index = torch.arange(len(self.train))
            held_out = index % 10 == 9
            self.whole = whole = self.train
            self.train, self.test = whole.subset(index[~held_out]), whole.subset(index[held_out])

    @property
    def splits(self) -> dict[str, ImageSet]:
        """The images trained on, those of the bank, and those tested on, by name; each image once."""
        named = {"train": self.train, "bank": self.bank, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}

    @property
    def whole_splits(self) -> dict[str, ImageSet]:
        """The same as the data set itself has them, with the images that were held out for testing in their places."""
        return self.splits if self.whole is None else {"train": self.whole}

    @cached_property
    def labelled_train(self) -> ImageSet:
        """What evaluation trains on: of the bank, or else of the training images, those that have a label."""
        return _labelled(self.train if self.bank is None else self.bank)

    @cached_property
    def labelled_test(self) -> ImageSet:
        """What evaluation tests on: the test images that have a label."""
        assert self.test is not None
        return _labelled(self.test)

    @property
    def labelled(self) -> bool:
        """Whether it can be evaluated: training and test images with labels."""
        return self.test is not None and self.labelled_train.labels is not None and self.test.labels is not None

    def first_of_each_class(self, count: int) -> "Source":
        """The same with the first `count` training images of each class alone, in their order.

        Raises UserError for training images without labels, or read through as streams.
        """
        if not self.train.random_access:
            raise UserError(
                f"--per-class {count}: remote shards allow no random access: copy or pack a subset to a local disk"
            )
        if self.train.labels is None:
            raise UserError(f"--per-class {count}: the training images have no labels")
        classes = [c for c in self.train.labels.unique() if c >= 0]
        kept = torch.cat([(self.train.labels == c).nonzero()[:count, 0] for c in classes])
        return replace(self, train=self.train.subset(kept.sort().values))

    @property
    def num_classes(self) -> int:
        assert self.labelled_train.labels is not None
        return len(self.classes) if self.classes else int(self.labelled_train.labels.max()) + 1


def _labelled(images: ImageSet) -> ImageSet:
    """Those whose label is not -1; all of a set without labels."""
    if images.labels is None or bool((images.labels >= 0).all()):
        return images
    return images.subset((images.labels >= 0).nonzero()[:, 0])


@dataclass(frozen=True)
class OpenOptions:
    """How a source is opened.

    Attributes:
        size: side in pixels of what is drawn (shapes).
        download: whether a published data set that is not there is downloaded.
        max_bad: the share of unreadable images above which UserError is raised.
        cache_mb: encoded images of one size up to so many MB are decoded into memory; 0: none, all stay encoded.
    """

    size: int = 32
    download: bool = False
    max_bad: float = 0.01
    cache_mb: int = 4096

    def cached(self, images: Encoded) -> ImageSet:
        """The images in memory, if that is wanted and they fit; else as they are."""
        return (in_memory(images, self.cache_mb) if self.cache_mb else None) or images
