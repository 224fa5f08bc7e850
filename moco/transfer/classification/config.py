"""The options of `moco finetune`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from moco.runs.options import Above0, AtLeast0, AtLeast1, Range
from moco.transfer.config import LabelledData, Schedule, TransferConfig

PROTOCOLS = ("finetune", "linear", "knn")


@dataclass(frozen=True)
class ClassifiedData(LabelledData):
    """Where labelled images come from."""

    source: Annotated[str, tyro.conf.arg(name="data", metavar="SOURCE")] = ""
    """shapes, cifar10:PATH, folder:PATH, npz:PATH, shards:PATTERN, hf:NAME, ... (moco data --help lists them)."""
    labels: str = "all"
    """Train on some of the labelled images alone, chosen by the seed, of every class alike: all, a number of images a
    class (20) or a share of each class (10%). A smaller number is a part of a larger one."""
    size: Annotated[int, tyro.conf.Suppress] = 0
    """Not used: images that are drawn have the size of the views."""
    download: Annotated[bool, tyro.conf.arg(name="data.download")] = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class TrainingViews:
    """The one view of an image that a step takes: a random crop, resized, flipped, normalised."""

    image_size: Annotated[int, AtLeast0] = 224
    """Height and width of a view in pixels; 0: that of the pre-training, or what suits the images."""
    min_area: Annotated[float, Range(0, 1, above=True)] = 0.08
    """The smallest share of an image's area that a random crop keeps; 1: nearly all of the image."""
    flip: bool = True
    """Mirror half of the images: not where left and right differ in meaning, as in text."""
    normalisation: str = "auto"
    """Mean and standard deviation of the colours: auto: those of the pre-training; imagenet, cifar, or both in numbers
    from 0 to 1: 0.5,0.5,0.5/0.2,0.2,0.2."""


@dataclass(frozen=True)
class Protocol:
    """What is trained."""

    protocol: Literal["finetune", "linear", "knn"] = "finetune"
    """finetune: all layers, end to end; linear: one linear layer on frozen features (section 4.1); knn: the k nearest
    labelled images vote, and nothing is trained."""
    cached: bool = False
    """Compute the features of centre crops once and train on them: quicker, without augmented crops (linear)."""
    k: Annotated[int, AtLeast0] = 0
    """Neighbours that vote (knn); 0: 200, and no more than the smallest class has labels."""
    temperature: Annotated[float, Above0] = 0.1
    """A vote weighs exp(cosine / temperature) (knn)."""


@dataclass(frozen=True)
class ClassificationSchedule(Schedule):
    """SGD for so many passes over the labelled images. Steps follow from them once the images are counted."""

    epochs: Annotated[int, AtLeast0] = 0
    """Passes over the labelled images; 0: what suits their number."""
    iterations: Annotated[int, AtLeast0] = 0
    """Steps in all, in place of --epochs; 0: as many as these take. The linear protocol takes whole epochs, the nearest
    number."""
    batch_size: Annotated[int, AtLeast1] = 256
    """Images a step, over all ranks. With another than the recipe's, the learning rate follows it (the linear rule),
    unless it is given too."""
    lr: Annotated[float, Above0] = 0.03
    """Peak learning rate."""
    falls: Annotated[tuple[float, ...], Range(0, 1)] = (0.3, 0.6, 0.9)
    """Milestones as shares of the run."""
    milestones: Annotated[tuple[int, ...], AtLeast0] = ()
    """Milestones in steps, in place of --falls."""
    warmup: Annotated[int, AtLeast0] = 0
    """Steps in which the learning rate rises linearly from a thousandth."""
    checkpointing: Annotated[Literal["auto", "yes", "no"], tyro.conf.Suppress] = "no"
    """Not used."""


@dataclass(frozen=True)
class ClassificationConfig(TransferConfig):
    """What a run of `moco finetune` is made of."""

    task: Annotated[str, tyro.conf.Suppress] = "finetune"
    data: ClassifiedData = field(default_factory=ClassifiedData)
    views: TrainingViews = field(default_factory=TrainingViews)
    model: Protocol = field(default_factory=Protocol)
    training: ClassificationSchedule = field(default_factory=ClassificationSchedule)
