"""Labelled images to train and to test on, and the names of their classes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moco.data import ImageSet, Source, open_source
from moco.runtime.errors import UserError
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.classification.labels import labelled


@dataclass(frozen=True)
class ClassifiedSets:
    """Images whose labels, int64, are numbers of `classes`.

    Attributes:
        train: those that are trained on.
        test: those that are tested on.
        classes: the names of the classes.
        counts: of each class, how many images are trained on.
    """

    train: ImageSet
    test: ImageSet
    classes: list[str]
    counts: list[int]


def open_sets(config: ClassificationConfig, facts: Mapping[str, Any] | None = None) -> ClassifiedSets:
    """The labelled images that a configuration names, and of them those that `--labels` takes.

    Args:
        facts: of a network that is there, its classes and their counts: the labels of test images become the numbers
            that they have in it. None: the classes are those of the data.

    Raises UserError: no such data, no labels, no test images, a label that is none of the classes.
    """
    data = config.data
    if not data.source:
        raise UserError("--data is missing: folder:PATH, npz:PATH, ... (moco data --help lists them)")
    source = _opened(config)
    if not source.labelled:
        raise UserError(f"--data {data.source}: has no labels to train and test on (classes are folders, or labels)")
    train, test = source.labelled_train, source.labelled_test
    assert train.labels is not None
    own = source.classes or [str(label) for label in range(source.num_classes)]
    seen = own if facts is None else list(facts["classes"])
    where = f"--data {data.source}"
    if facts is None and len(train.labels.unique()) < 2:
        raise UserError(f"{where}: all training images are of one class: there is nothing to classify")
    test = _relabelled(test, own, seen, source.classes is not None, f"{where}: test images")
    if facts is not None:
        return ClassifiedSets(train, test, seen, list(facts["counts"]))
    if train.random_access:
        train = train.subset(labelled(train.labels, data.labels, config.training.seed, own))
    elif data.labels != "all" or len(train) < len(source.train):
        raise UserError(f"{where}: remote shards allow no random access, so all of them are trained on: copy them")
    assert train.labels is not None
    return ClassifiedSets(train, test, own, train.labels.bincount(minlength=len(own)).tolist())


@contextmanager
def sources_kept() -> Iterator[None]:
    """Within it a source that was opened is kept: the runs of a comparison read the same images."""
    _kept.append({})
    try:
        yield
    finally:
        _kept.pop()


_kept: list[dict[tuple[str, int], Source]] = []


def _opened(config: ClassificationConfig) -> Source:
    data, size = config.data, config.views.image_size or 32
    kept = _kept[-1] if _kept else {}
    if (data.source, size) not in kept:
        kept.clear()  # one at a time: it may fill the memory
        kept[data.source, size] = open_source(data.source, size=size, download=data.download, max_bad=data.max_bad)
    return kept[data.source, size]


def _relabelled(images: ImageSet, own: list[str], seen: list[str], named: bool, where: str) -> ImageSet:
    """The images with labels that are numbers of `seen`, by name where the data name their classes."""
    assert images.labels is not None
    labels = images.labels
    highest = int(labels.max())
    if highest >= len(own):
        raise UserError(f"{where} have label {highest}, and training images have 0 to {len(own) - 1} alone")
    if named and own != seen:
        present = [own[label] for label in labels.unique().tolist()]
        if unknown := [name for name in present if name not in seen]:
            raise UserError(f"{where} are of classes that the run never saw: {', '.join(unknown[:3])}")
        number = torch.tensor([seen.index(name) if name in seen else -1 for name in own])
        return _with_labels(images, number[labels])
    if highest >= len(seen):
        raise UserError(f"{where} have label {highest}, which the run never saw: it has 0 to {len(seen) - 1}")
    return images


def _with_labels(images: ImageSet, labels: Tensor) -> ImageSet:
    changed = images.subset(torch.arange(len(images)))
    changed.labels = labels
    return changed
