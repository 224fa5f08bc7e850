"""Options: a dataclass for each command, and how a command line becomes one. Nothing heavy is imported here."""

import io
import itertools
import re
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from moco.runs.config import Above0, AtLeast0, AtLeast1, Compute, Config, Linear, Range, Share
from moco.runtime.errors import UserError, did_you_mean

Options = TypeVar("Options")
Flat = tyro.conf.OmitArgPrefixes  # type: ignore[type-arg]
Source = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
Download = Annotated[bool, tyro.conf.arg(name="data.download")]


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: a run's folder, or a file of weights such as the released code's checkpoints."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or a file of weights (.pth.tar, .pt, .safetensors)."""
    data: str | None = None
    """Another data set than the run's: shapes, folder:PATH, shards:PATTERN, ... (moco data --help lists them)."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""
    encoder: str | None = None
    """The encoder's name, where a file does not say it."""
    image_size: Annotated[int | None, AtLeast1] = None
    """Height and width of an image in pixels, if not the run's (224 for a file)."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder by momentum contrast."""

    config: Annotated[Config, Flat] = field(default_factory=Config)
    out: Path | None = None
    """The run's folder; runs/RECIPE if not given."""
    resume: Literal["no", "yes", "auto"] = "no"
    """yes (or --resume alone): continue the run in that folder where it stopped, with the options that it was started
    with. auto: continue it if it is there, else start it: the same command for torchrun and a batch system."""


@dataclass(frozen=True)
class Knn:
    """The weighted k-nearest-neighbour classifier: training images vote for the class of each test image."""

    evaluated: Annotated[Evaluated, Flat]
    k: Annotated[int | None, AtLeast1] = None
    """Neighbours that vote; 200 if the run does not say."""
    temperature: Annotated[float | None, Above0] = None
    """A vote weighs exp(cosine / temperature): 0.1 for CIFAR, 0.07 for ImageNet; the run's if not given."""
    random: bool = False
    """Evaluate the same encoder with random weights as well."""


@dataclass(frozen=True)
class LinearProbe:
    """Linear classification on frozen features, the protocol of section 4.1 of the paper."""

    evaluated: Annotated[Evaluated, Flat]
    linear: Annotated[Linear, Flat] = field(default_factory=Linear)


@dataclass(frozen=True)
class Survey:
    """What is in a data set: how many images of which sizes, formats and classes, and which are broken."""

    source: Source
    """The data set, as --data spells it."""
    sample: Annotated[int, AtLeast0] = 2000
    """How many images are examined, sampled at random; 0: all."""
    out: Path | None = None
    """Write a contact sheet there (.png): images, and two views of each as the encoder would see them."""
    views: str = "v2"
    """The views on the contact sheet."""
    image_size: Annotated[int | None, AtLeast1] = None
    """Height and width of a view in pixels; 224 if not given, of smaller images theirs."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class Suggest:
    """Examine a data set and this machine, and write a recipe: each choice with its reason, and what it would cost."""

    source: Source
    """The data set, as --data spells it."""
    hours: Annotated[float | None, Above0] = None
    """How long a run may take here; if not given, as long as is usual for such a set."""
    out: Path = Path("suggested.yaml")
    """The recipe; `moco pretrain suggested.yaml` runs it."""
    overwrite: bool = False
    """Replace a recipe that is there."""
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
    """Larger images are resized to this shorter side in pixels; if not given, none is."""
    format: Literal["keep", "jpeg", "webp"] = "keep"
    """keep: an image that is not resized stays as it is, byte for byte."""
    quality: Annotated[int, Range(1, 100)] = 90
    """Quality of JPEG and WebP, 1..100."""
    images_per_shard: Annotated[int, AtLeast1] = 10_000
    """Images in a shard."""
    workers: Annotated[int, AtLeast0] = 2
    """Processes that resize and encode."""
    max_bad: Annotated[float, Share] = 0.01
    """The share of unreadable images, which are left out, above which it stops."""
    download: Download = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class Reproduce:
    """An experiment of the paper as a grid of runs: what is missing is run, a page says which findings show."""

    experiment: tyro.conf.Positional[Literal["mechanisms", "momentum", "shuffle-bn", "encoders", "small-scale"]]
    """mechanisms (Fig. 3), momentum (4.1), shuffle-bn (Fig. A.1), encoders (Table 1), small-scale (others' results)."""
    scale: Literal["cpu", "gpu", "imagenet"] = "cpu"
    """cpu: 10,000 CIFAR-10 images and a small encoder; gpu: CIFAR-10 and ResNet-18; imagenet: the paper's own."""
    dry_run: bool = False
    """List the runs and what they would cost here, measured by a few steps of each."""
    data: str | None = None
    """Where the images are, as --data spells it, in place of cifar10:data (or folder:imagenet)."""
    set: tuple[str, ...] = ()
    """Options of every run in place of the scale's, named as by `moco pretrain`: epochs=4 per_class=100."""
    vary: str | None = None
    """NAME=VALUE,VALUE,...: the grid at each value of an option, to find where a finding begins to show."""
    only: tuple[str, ...] = ()
    """Only these settings of the grid, as its table spells x or series: 0.99 0.999."""
    seeds: Annotated[int | None, AtLeast1] = None
    """Runs of each setting; 2 or 3 if not given, 1 on ImageNet."""
    minutes: Annotated[float | None, AtLeast0] = None
    """Stop after so many minutes; the same command goes on."""
    out: Path | None = None
    """The folder of the runs; runs/reproduce/EXPERIMENT-SCALE, and what is set, if not given."""
    page: Path | None = None
    """The folder of the page, its figure and its figures as JSON; that of the runs if not given."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Doctor:
    """What goes well or wrong in a run, and what to change. Exit code 1 if there is a problem."""

    run: tyro.conf.Positional[Path]
    """The run's folder; it may still be training."""


@dataclass(frozen=True)
class Report:
    """Write a page about one run, or several beside each other: curves, pictures, tables. It needs no network."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """The runs' folders."""
    out: Path | None = None
    """The page; report.html in the run's folder, of several runs in this folder, if not given."""
    points: Annotated[int, Range(1, 10_000)] = 2000
    """Images on the maps, over all runs. Neighbours are searched among five times as many."""
    data: str | None = None
    """Another data set than the run's to take images from (moco data --help lists them)."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Demo:
    """Pre-train on the embedded data set and show what the features gain."""

    out: Path | None = None
    """The run's folder; runs/demo, or the next free name, if not given."""


def parse(options: type[Options], words: list[str], prog: str, default: Options | None = None) -> Options:
    """The options of a command. UserError at an unknown one, naming the nearest, and at a value of the wrong type."""
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            parsed, unknown = tyro.cli(options, args=words, prog=prog, return_unknown_args=True, **kwargs)
    except SystemExit as left:
        if not left.code:  # --help
            raise
        raise UserError(f"{prog}: {_unboxed(printed.getvalue())} ({prog} --help)") from None
    for word in unknown:
        if word.startswith("-"):
            raise UserError(f"{prog}: no option {word.split('=')[0]}{nearest(word.split('=')[0], _flags(options))}")
    if unknown:
        raise UserError(f"{prog}: unexpected argument {' '.join(unknown)!r} ({prog} --help)")
    return parsed  # type: ignore[no-any-return]


def nearest(word: str, known: Iterable[str]) -> str:
    """ ": did you mean --lr?", or all that there are."""
    return did_you_mean(word, known) or f": there are {', '.join(known)}"


def _unboxed(text: str) -> str:
    """What stands first in tyro's box, in one line."""
    lines = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    first = itertools.takewhile(lambda line: not line.startswith("──"), lines)
    return " ".join(" ".join(first if lines else [text]).split())


def _flags(options: type) -> list[str]:
    """All flags of a command's options, as its help spells them."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        tyro.cli(options, args=["--help"])
    return re.findall(r"(?<![\w-])--[\w.-]+", text.getvalue())
