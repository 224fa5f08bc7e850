"""The options of each command as a dataclass, whose docstrings are its help. Nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moco.runs.config import Compute, Config, Linear
from moco.runs.options import Above0, AtLeast0, AtLeast1, Range, Share
from moco.transfer.classification.config import ClassificationConfig
from moco.transfer.config import TransferCompute, TransferConfig
from moco.transfer.detection.config import DetectionConfig
from moco.transfer.segmentation.config import SegmentationConfig

Flat = tyro.conf.OmitArgPrefixes  # type: ignore[type-arg]
Source = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
Run = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
Download = Annotated[bool, tyro.conf.arg(name="data.download")]


@dataclass(frozen=True)
class Weights:
    """The encoder that is used: a run's, or given weights such as the released code's checkpoints."""

    run: Run
    """A run's folder, a file of weights (.pth.tar, .pt, .safetensors), torchvision:NAME, timm:NAME, hf:OWNER/NAME, or
    shapes-cpu or cifar10-cpu, small encoders that come with moco."""
    encoder: str | None = None
    """The encoder's name, for a file of weights that does not hold it."""
    image_size: Annotated[int | None, AtLeast1] = None
    """Height and width of an image in pixels; None: the run's, 224 for a file of weights that does not hold it."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Evaluated(Weights):
    """The encoder, and the data set that it is used on."""

    data: str | None = None
    """A data set in place of the run's: folder:PATH, npz:PATH, ... (moco data --help lists them)."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder by momentum contrast."""

    config: Annotated[Config, Flat, tyro.conf.arg(name="")] = field(default_factory=Config)
    out: Path | None = None
    """The run's folder; None: runs/RECIPE."""
    resume: Literal["no", "yes", "auto"] = "no"
    """yes, or --resume alone: continue the run in that folder; auto: continue it if there is one, else start it."""


@dataclass(frozen=True)
class Knn:
    """The weighted k-nearest-neighbour classifier: training images vote for the class of each test image."""

    evaluated: Annotated[Evaluated, Flat, tyro.conf.arg(name="")]
    k: Annotated[int | None, AtLeast1] = None
    """Neighbours that vote; None: the run's, else 200."""
    temperature: Annotated[float | None, Above0] = None
    """A vote weighs exp(cosine / temperature): 0.1 for CIFAR, 0.07 for ImageNet; None: the run's."""
    random: bool = False
    """Evaluate the same encoder with random weights as well."""
    head: bool = False
    """Of the projection head's output in place of the encoder's features, as some published figures are; of a run."""


@dataclass(frozen=True)
class LinearProbe:
    """Linear classification on frozen features, the protocol of section 4.1 of the paper."""

    evaluated: Annotated[Evaluated, Flat, tyro.conf.arg(name="")]
    linear: Annotated[Linear, Flat] = field(default_factory=Linear)


@dataclass(frozen=True)
class Embed:
    """Write the features of all images of a data set, with their names and labels, in the order of the data set."""

    evaluated: Annotated[Evaluated, Flat, tyro.conf.arg(name="")]
    out: Path = Path("features.npz")
    """The file: .npz, .parquet (pip install 'momentum-contrast[parquet]'), .csv, or .npy with a .csv beside it that
    names its rows."""
    split: Literal["all", "train", "bank", "test"] = "all"
    """Embed this split alone; bank: the labelled images beside unlabelled training images, as STL-10 has them."""
    normalise: bool = False
    """Scale features to length 1."""
    map: bool = False
    """Add places on a map in two dimensions, x and y, where near neighbours lie together. It holds all features in
    memory, and its time grows with the square of the images beyond some 100,000."""
    batch_size: Annotated[int, AtLeast1] = 256
    """Images encoded at once, over all ranks."""
    max_bad: Annotated[float, Share] = 0.01
    """Stop when more than this share of the images is unreadable; up to it they are left out, and named."""
    overwrite: bool = False
    """Replace the file if it exists, and begin again."""


@dataclass(frozen=True)
class Search(Weights):
    """Find the images of a data set that are nearest to given ones, by the cosine of their features."""

    queries: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="QUERY [QUERY ...]")]] = ()
    """Image files, or folders of them."""
    among: str | None = None
    """The data set that is searched (moco data --help lists the sources), or a file of its features, .npz or .parquet,
    that moco embed wrote; None: the run's data set."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""
    k: Annotated[int, AtLeast1] = 8
    """Images found for each query."""
    out: Path | None = None
    """Draw the queries and what is found to this .png or .jpg, the first 50 queries."""
    table: Path | None = None
    """Write what is found to this .csv or .json."""
    index: Literal["auto", "exact", "faiss"] = "auto"
    """exact: every query is compared with every image; faiss: with those of the nearest cells of an index
    (pip install 'momentum-contrast[faiss]'); auto: exact up to 10^12 pairs, a million images with one another."""
    max_bad: Annotated[float, Share] = 0.01
    """Stop when more than this share of the images is unreadable; up to it they are left out."""
    overwrite: bool = False
    """Replace files that exist."""


@dataclass(frozen=True)
class Duplicates:
    """Find near duplicates within a data set, and test images that have one among the training images."""

    evaluated: Annotated[Evaluated, Flat, tyro.conf.arg(name="")]
    threshold: Annotated[float | None, Range(-1, 1)] = None
    """The least cosine of two candidates; None: what 95 % of cropped and tinted copies of images reach."""
    correlation: Annotated[float, Range(-1, 1)] = 0.75
    """The least correlation of the pixels of two duplicates (small, grey, local contrast, over small shifts, mirrored
    too); -1: features alone decide."""
    out: Path | None = None
    """Draw the groups to this .png or .jpg: the first 24, those with a test and a training image before others."""
    drop: Path | None = None
    """Write the names of the images to leave out to this text file: of each group all but one, a test image if it has
    any."""
    table: Path | None = None
    """Write the groups to this .csv or .json."""
    index: Literal["auto", "exact", "faiss"] = "auto"
    """exact: every image is compared with every other; faiss: with those of the nearest cells of an index
    (pip install 'momentum-contrast[faiss]'); auto: exact up to 10^12 pairs, a million images with one another."""
    max_bad: Annotated[float, Share] = 0.01
    """Stop when more than this share of the images is unreadable; up to it they are left out."""
    overwrite: bool = False
    """Replace files that exist."""


@dataclass(frozen=True)
class Survey:
    """Examine a data set: the number, sizes, formats and classes of its images, and which are broken."""

    source: Source
    """The data set, as --data spells it."""
    sample: Annotated[int, AtLeast0] = 2000
    """How many images are examined, sampled at random; 0: all."""
    out: Path | None = None
    """Write a contact sheet to this .png: images, and two views of each as the encoder would see them."""
    views: str = "v2"
    """The views on the contact sheet."""
    image_size: Annotated[int | None, AtLeast1] = None
    """Height and width of a view in pixels; None: 224, or the images' own size if that is smaller."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class Suggest:
    """Write a recipe for a data set and this machine: each choice with its reason, and the run's cost."""

    source: Source
    """The data set, as --data spells it."""
    init: str = "random"
    """Weights to start from, as of `moco pretrain`: they decide the encoder, and a run from them is shorter."""
    hours: Annotated[float | None, Above0] = None
    """Hours that the run may take on this machine; None: the usual number of epochs for such a data set."""
    out: Path = Path("suggested.yaml")
    """The recipe's file; `moco pretrain suggested.yaml` runs it."""
    overwrite: bool = False
    """Overwrite an existing recipe."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Pack:
    """Pack a data set into tar shards, which are read sequentially, from a disk or over a network."""

    source: Source
    """The data set, as --data spells it."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """The folder of the shards."""
    size: Annotated[int | None, AtLeast1] = None
    """Resize larger images to this shorter side in pixels; None: resize none."""
    format: Literal["keep", "jpeg", "webp"] = "keep"
    """keep: an image that is not resized keeps its bytes."""
    quality: Annotated[int, Range(1, 100)] = 90
    """Quality of JPEG and WebP, 1..100."""
    images_per_shard: Annotated[int, AtLeast1] = 10_000
    """Images in a shard."""
    workers: Annotated[int, AtLeast0] = 2
    """Worker processes that resize and encode."""
    max_bad: Annotated[float, Share] = 0.01
    """Stop when more than this share of the images is unreadable; up to it they are left out."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment of the paper as a grid of runs, and report which of its findings are reproduced."""

    experiment: tyro.conf.Positional[
        Literal["mechanisms", "momentum", "shuffle-bn", "encoders", "small-scale", "transfer"]
    ]
    """mechanisms (Fig. 3), momentum (4.1), shuffle-bn (Fig. A.1), encoders (Table 1), small-scale (others' results),
    transfer (4.2)."""
    scale: Literal["cpu", "gpu", "imagenet", "paper"] = "cpu"
    """cpu: 10,000 CIFAR-10 images and a small encoder; gpu: CIFAR-10 and ResNet-18; imagenet: the paper's own. For the
    experiment transfer cpu and gpu: drawn images; paper: VOC, COCO and Cityscapes."""
    dry_run: bool = False
    """List the runs and their cost on this machine, estimated from a few steps of each."""
    data: str | None = None
    """The data set, in place of cifar10:data (or folder:imagenet); moco data --help lists the sources."""
    set: tuple[str, ...] = ()
    """Options that override the scale's in every run, named as by `moco pretrain`: epochs=4 per_class=100."""
    vary: str | None = None
    """NAME=VALUE,VALUE,...: run the grid at each value of an option, to find from which value on a finding shows."""
    only: tuple[str, ...] = ()
    """Run only these settings of the grid, by their names in its table: 0.99 0.999."""
    starts: tuple[str, ...] = ()
    """For the experiment transfer: the starts that are compared: random, a run's folder, torchvision:resnet50, ...;
    none: random weights and an encoder pre-trained on drawn images."""
    seeds: Annotated[int | None, AtLeast1] = None
    """Seeds of each setting; None: 2 or 3, 1 on ImageNet."""
    minutes: Annotated[float | None, AtLeast0] = None
    """Stop after this many minutes; the same command continues."""
    out: Path | None = None
    """The folder of the runs; None: runs/reproduce/EXPERIMENT-SCALE, followed by the options of --set."""
    page: Path | None = None
    """The folder of the page, its plots and its results as JSON; None: that of the runs."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Doctor:
    """Diagnose a run: what goes well or wrong, and what to change. Exit code 1 if there is a problem."""

    run: Run
    """The run's folder; it may still be training."""


@dataclass(frozen=True)
class Report:
    """Write an HTML page about one run, or several side by side: curves, pictures, tables. It needs no network."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """The runs' folders."""
    out: Path | None = None
    """The page's file; None: report.html in the run's folder, for several runs in the current folder."""
    points: Annotated[int, Range(1, 10_000)] = 2000
    """Images on the maps, over all runs. Nearest neighbours are searched among five times as many."""
    data: str | None = None
    """A data set to take the images from in place of the run's (moco data --help lists them)."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Export:
    """Write an encoder in the form of another library, where it gives the same features."""

    run: Run
    """A run's folder, a file of weights (.pth.tar, .pt, .safetensors), torchvision:NAME, timm:NAME, hf:OWNER/NAME, or
    shapes-cpu or cifar10-cpu, small encoders that come with moco."""
    to: Literal["torchvision", "timm", "detectron2", "mmdet", "safetensors", "onnx", "hub"]
    """torchvision, timm: a state dict; detectron2, mmdet: a ResNet and a config file; safetensors: for
    moco.load_encoder; onnx: a graph; hub: a folder for the Hugging Face hub, with a model card."""
    out: Path | None = None
    """The file, for hub the folder; None: in the run's folder, named as the run and the form."""
    overwrite: bool = False
    """Overwrite what is there."""
    encoder: str | None = None
    """The encoder's name, for a file of weights that does not hold it."""
    image_size: Annotated[int | None, AtLeast1] = None
    """Height and width of an image in pixels; None: the run's, 224 for a file of weights that does not hold it."""
    push: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """Upload the folder of --to hub to this repository; --overwrite if it exists."""
    private: bool = False
    """Make the repository of --push a private one."""
    license: str = "unknown"
    """Licence of the weights in the model card of --to hub, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0."""


@dataclass(frozen=True)
class Transfer:
    """What the commands that train a network for a task have in common; each derives its own."""

    start: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="START")]] = None
    """What the encoder starts from: a run's folder, a released checkpoint or another file of weights, torchvision:NAME,
    timm:NAME, hf:OWNER/NAME, shapes-cpu or cifar10-cpu (weights that come along), or random. For --eval-only and
    --predict: a folder that this command wrote."""
    config: Annotated[TransferConfig, Flat, tyro.conf.arg(name="")] = field(default_factory=TransferConfig)
    out: Path | None = None
    """The run's folder; None: runs/RECIPE."""
    resume: Literal["no", "yes", "auto"] = "no"
    """yes, or --resume alone: continue the run in that folder; auto: continue it if there is one, else start it."""
    trials: Annotated[int, AtLeast1] = 1
    """Runs with seeds 0, 1, ...: their mean and standard deviation."""
    compare: tuple[str, ...] = ()
    """Several starts, each as START: a run of each, and a table of their results."""
    over_labels: tuple[str, ...] = ()
    """Several numbers of labelled images, each as --labels: a run of each, and the results over the labels."""
    eval_only: bool = False
    """Evaluate a run that is trained, on its own test images or those of --data."""
    predict: tuple[Path, ...] = ()
    """Apply a run that is trained to images, files or folders."""


@dataclass(frozen=True)
class Finetune(Transfer):
    """Train a classifier from an encoder, end to end (appendices A.6 and A.7) or on its frozen features."""

    config: Annotated[ClassificationConfig, Flat, tyro.conf.arg(name="")] = field(default_factory=ClassificationConfig)
    predict: Annotated[tuple[Path, ...], tyro.conf.Suppress] = ()
    """Not used: `moco predict RUN IMAGES`."""
    threshold: Annotated[float, tyro.conf.Suppress] = 0.5
    """Not used."""


@dataclass(frozen=True)
class Predict:
    """Classify images by a run of `moco finetune`."""

    run: Run
    """The run's folder."""
    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]]
    """Images, or folders of them."""
    out: Path = Path("predictions.csv")
    """Where the predictions are written, as .csv or .json."""
    overwrite: bool = False
    """Overwrite existing predictions."""
    top: Annotated[int, AtLeast1] = 5
    """How many of the likeliest classes are given for each image."""
    compute: Annotated[TransferCompute, Flat] = field(default_factory=TransferCompute)


@dataclass(frozen=True)
class Detect(Transfer):
    """Train a detector from an encoder (section 4.2), with masks or keypoints if wanted."""

    config: Annotated[DetectionConfig, Flat, tyro.conf.arg(name="")] = field(default_factory=DetectionConfig)
    threshold: Annotated[float, Share] = 0.5
    """The least score of a detection that is drawn (--predict)."""


@dataclass(frozen=True)
class Segment(Transfer):
    """Train a network for semantic segmentation from an encoder (appendix A.5)."""

    config: Annotated[SegmentationConfig, Flat, tyro.conf.arg(name="")] = field(default_factory=SegmentationConfig)


@dataclass(frozen=True)
class Demo:
    """Pre-train on the embedded data set of drawn shapes and print the gain in kNN accuracy."""

    out: Path | None = None
    """The run's folder; None: runs/demo, or the next free name."""
