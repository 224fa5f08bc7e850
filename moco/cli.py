"""The command line: a sub-command is parsed here and is one call elsewhere.

Nothing heavy is imported before a command is known to be right, so that help and mistakes are answered at once.
"""

import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from moco.config import Compute, Config, Linear
from moco.errors import UserError

Options = TypeVar("Options")
Flat = tyro.conf.OmitArgPrefixes  # type: ignore[type-arg]


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder by momentum contrast."""

    config: Annotated[Config, Flat] = field(default_factory=Config)
    out: Path | None = None
    """The run's folder; runs/RECIPE if not given."""
    resume: bool = False
    """Continue the run in that folder where it stopped; its options are those it was started with."""


@dataclass(frozen=True)
class Judge:
    """What is judged: a run's folder, or a file of weights such as the released code's checkpoints."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or a file of weights (.pth.tar, .pt, .safetensors)."""
    data: str | None = None
    """Another data set than the run's: shapes, folder:PATH, shards:PATTERN, ... (moco data --help lists them)."""
    download: Annotated[bool, tyro.conf.arg(name="data.download")] = False
    """Fetch the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""
    encoder: str | None = None
    """The encoder's name, where a file does not tell it."""
    image_size: int | None = None
    """Side of an image in pixels, where it is another than the run's (224 for a file)."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Knn:
    """The weighted k-nearest-neighbour classifier: training images vote for the class of each test image."""

    judged: Annotated[Judge, Flat]
    k: int | None = None
    """Neighbours that vote; 200 if the run does not say."""
    temperature: float | None = None
    """A vote weighs exp(cosine / temperature): 0.1 for CIFAR, 0.07 for ImageNet; the run's if not given."""
    random: bool = False
    """Judge the same encoder with random weights as well."""


@dataclass(frozen=True)
class LinearOptions:
    """Linear classification on frozen features, the protocol of section 4.1 of the paper."""

    judged: Annotated[Judge, Flat]
    linear: Annotated[Linear, Flat] = field(default_factory=Linear)


@dataclass(frozen=True)
class Look:
    """What is in a data set: how many images of which sizes, formats and classes, and which are broken."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """The data set, as --data spells it."""
    sample: int = 2000
    """How many images are looked at, drawn at random; 0: all."""
    out: Path | None = None
    """Draws a contact sheet there (.png): images, and two views of each as the encoder would see them."""
    views: str = "v2"
    """The views on the contact sheet."""
    image_size: int | None = None
    """Height and width of a view in pixels; 224 if not given, of smaller images theirs."""
    download: Annotated[bool, tyro.conf.arg(name="data.download")] = False
    """Fetch the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class Pack:
    """Pack a data set into tar shards, which are read in long strokes, from a disk or over a network."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """The data set, as --data spells it."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """The folder of the shards."""
    size: int | None = None
    """The shorter side in pixels that larger images are reduced to; not given, none is."""
    format: Literal["keep", "jpeg", "webp"] = "keep"
    """keep: an image that is not reduced stays as it is, byte for byte."""
    quality: int = 90
    """Of what is encoded anew, 1..100."""
    images_per_shard: int = 10_000
    """Images in a file."""
    workers: int = 2
    """Processes that reduce and encode."""
    download: Annotated[bool, tyro.conf.arg(name="data.download")] = False
    """Fetch the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""


@dataclass(frozen=True)
class Reproduce:
    """An experiment of the paper as a grid of runs: what is missing is run, a page says which findings show."""

    experiment: tyro.conf.Positional[Literal["mechanisms", "momentum", "shuffle-bn", "encoders", "small-scale"]]
    """mechanisms (Fig. 3), momentum (4.1), shuffle-bn (Fig. A.1), encoders (Table 1), small-scale (others' results)."""
    scale: Literal["cpu", "gpu", "imagenet"] = "cpu"
    """cpu: 10,000 CIFAR-10 images and a small encoder; gpu: CIFAR-10 and ResNet-18; imagenet: the paper's own."""
    dry_run: bool = False
    """Tell the runs and what they would cost here, measured by a few steps of each."""
    data: str | None = None
    """Where the images are, as --data spells it, in place of cifar10:data (or folder:imagenet)."""
    set: tuple[str, ...] = ()
    """Options of every run in place of the scale's, named as by `moco pretrain`: epochs=4 per_class=100."""
    vary: str | None = None
    """NAME=VALUE,VALUE,...: the grid at each value of an option, to find where a finding begins to show."""
    only: tuple[str, ...] = ()
    """Only these settings of the grid, as its table spells x or series: 0.99 0.999."""
    seeds: int | None = None
    """Runs of each setting; 2 or 3 if not given, 1 on ImageNet."""
    minutes: float | None = None
    """Stop after so many minutes; the same command goes on."""
    out: Path | None = None
    """The folder of the runs; runs/reproduce/EXPERIMENT-SCALE, and what is set, if not given."""
    page: Path | None = None
    """The folder of the page, its figure and its figures as JSON; that of the runs if not given."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Report:
    """Write one page about one run, or several beside each other: curves, pictures, figures. It needs no network."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """The runs' folders."""
    out: Path | None = None
    """The page; report.html in the run's folder, of several runs in this folder, if not given."""
    points: int = 2000
    """Images on the maps, in all: several runs share them. Neighbours are sought among five times as many."""
    data: str | None = None
    """Another data set than the run's to take images from (moco data --help lists them)."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


@dataclass(frozen=True)
class Suggest:
    """Look at a data set and this machine, and write a recipe: each choice with its reason, and what it would cost."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """The data set, as --data spells it."""
    hours: float | None = None
    """How long a run may take here; if not given, as long as is usual for such a set."""
    out: Path = Path("suggested.yaml")
    """The recipe; `moco pretrain suggested.yaml` runs it."""
    overwrite: bool = False
    """Replace a recipe that is there."""
    download: Annotated[bool, tyro.conf.arg(name="data.download")] = False
    """Fetch the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""
    compute: Annotated[Compute, Flat] = field(default_factory=Compute)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line and leaves by SystemExit: 0, or 2 after one line that says what to mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(words)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"moco: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if words[0] in ("-V", "--version"):
        from moco import __version__

        print(f"moco {__version__}")
        return
    if words[0] not in COMMANDS:
        raise UserError(f"no command {words[0]!r}: {_nearest(words[0], COMMANDS)}")
    COMMANDS[words[0]][1](words[1:])


def _overview() -> str:
    rows = "\n".join(f"  {name:10} {about}" for name, (about, _) in COMMANDS.items())
    return (
        "moco: visual features from images without labels, by momentum contrast (He et al., CVPR 2020)\n\n"
        f"usage: moco COMMAND ...\n\n{rows}\n\n"
        "moco COMMAND --help tells the options of a command, moco pretrain RECIPE --help those of a recipe.\n"
        "On several GPUs: torchrun --nproc-per-node=N -m moco COMMAND ..."
    )


def _nearest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _parse(options: type[Options], words: list[str], prog: str, default: Options | None = None) -> Options:
    """The options of a command. UserError at an unknown one, naming the nearest, and at a value that none can be."""
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            parsed, unknown = tyro.cli(options, args=words, prog=prog, return_unknown_args=True, **kwargs)
    except SystemExit as left:
        if not left.code:  # --help
            raise
        raise UserError(f"{prog}: {_unboxed(told.getvalue())} ({prog} --help)") from None
    for word in unknown:
        if word.startswith("-"):
            raise UserError(f"{prog}: no option {word.split('=')[0]}: {_nearest(word.split('=')[0], _flags(options))}")
    if unknown:
        raise UserError(f"{prog}: do not know what to do with {' '.join(unknown)!r} ({prog} --help)")
    return parsed  # type: ignore[no-any-return]


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


def _pretrain(words: list[str]) -> None:
    from moco.recipes import get_recipe

    if not words or words[0] in ("-h", "--help"):
        print("usage: moco pretrain RECIPE [--options]      (moco pretrain RECIPE --help tells them)\n")
        _recipes([])
        return
    if words[0].startswith("-"):
        raise UserError("moco pretrain RECIPE [--options]: the recipe comes first (moco recipes lists them)")
    recipe = get_recipe(words[0])
    options = _parse(Pretrain, words[1:], f"moco pretrain {recipe.name}", Pretrain(recipe.config))
    folder = options.out or Path("runs") / Path(recipe.name).stem
    if options.resume:
        from moco.run import Run

        # What the command line does not say is as it was when the run was started.
        run = Run.open(folder)
        before = replace(run.config(), recipe=recipe.name)
        options = _parse(Pretrain, words[1:], f"moco pretrain {recipe.name}", Pretrain(before))
        run.require(options.config)
    from moco.commands import pretrain

    pretrain(options.config, folder, options.resume)


def _knn(words: list[str]) -> None:
    options = _parse(Knn, words, "moco knn")
    from moco.commands import knn

    knn(options.judged, options.k, options.temperature, options.random)


def _linear(words: list[str]) -> None:
    options = _parse(LinearOptions, words, "moco linear")
    from moco.commands import linear

    linear(options.judged, options.linear)


def _recipes(words: list[str]) -> None:
    from moco.commands import list_recipes, show_recipe

    if words and words[0] in ("-h", "--help"):
        print("usage: moco recipes [RECIPE]      lists the recipes, or shows one whole")
    elif words:
        show_recipe(words[0])
    else:
        list_recipes()


def _data(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        from moco.commands import list_sources

        print("usage: moco data SOURCE [--options]\n")
        list_sources()
        words = ["--help"]
    options = _parse(Look, words, "moco data")
    from moco.commands import data

    data(options)


def _suggest(words: list[str]) -> None:
    options = _parse(Suggest, words, "moco suggest")
    from moco.commands import suggest

    suggest(options)


def _pack(words: list[str]) -> None:
    options = _parse(Pack, words, "moco pack")
    from moco.commands import pack

    pack(options)


def _reproduce(words: list[str]) -> None:
    options = _parse(Reproduce, words, "moco reproduce")
    from moco.commands import reproduce

    reproduce(options)


@dataclass(frozen=True)
class Doctor:
    """What is going on in a run, in plain words, and what to change. Exit code 1 if something is wrong."""

    run: tyro.conf.Positional[Path]
    """The run's folder; it may still be training."""


def _doctor(words: list[str]) -> None:
    options = _parse(Doctor, words, "moco doctor")
    from moco.commands import doctor

    doctor(options.run)


def _report(words: list[str]) -> None:
    options = _parse(Report, words, "moco report")
    from moco.commands import report

    report(options)


@dataclass(frozen=True)
class Demo:
    """Pre-train on the embedded data set and show that the features are good; about 3 minutes on 2 cores."""

    out: Path | None = None
    """The run's folder; runs/demo, or the next free name, if not given."""


def _demo(words: list[str]) -> None:
    options = _parse(Demo, words, "moco demo")
    from moco.commands import demo

    demo(options.out)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "demo": ("pre-train on drawn images and see the gain, in about 3 minutes", _demo),
    "data": ("look at a data set: sizes, formats, broken images, a contact sheet", _data),
    "suggest": ("write a recipe for a data set and this machine, with reasons and its cost", _suggest),
    "pack": ("pack a data set into shards that are read fast", _pack),
    "pretrain": ("train an encoder by a recipe, on your images", _pretrain),
    "knn": ("judge a run's features by their nearest neighbours", _knn),
    "linear": ("judge a run's features by a linear classifier, the paper's protocol", _linear),
    "reproduce": ("run an experiment of the paper, and see which of its findings show", _reproduce),
    "doctor": ("say what is going on in a run, in plain words, and what to change", _doctor),
    "report": ("write a page about one run, or several: curves, neighbours, a map of the features", _report),
    "recipes": ("list the recipes, or show one", _recipes),
}
