"""The command line: parses a command, which the module of its name in `commands` then runs.

Nothing heavy is imported before the command line is known to be right, so that help and mistakes are answered at once.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from moco.cli import options
from moco.cli.parse import parse
from moco.runs.options import check_ranges
from moco.runtime.errors import RankError, UserError, did_you_mean

COMMANDS: dict[str, tuple[str, Any]] = {
    "demo": ("pre-train on drawn images and print the gain, in 2 to 3 minutes", options.Demo),
    "data": ("examine a data set: sizes, formats, broken images, a contact sheet", options.Survey),
    "suggest": ("write a recipe for a data set and this machine, with reasons and its cost", options.Suggest),
    "pack": ("pack a data set into tar shards, for fast sequential reading", options.Pack),
    "pretrain": ("pre-train an encoder on your images, by a recipe", options.Pretrain),
    "knn": ("evaluate a run's features by a nearest-neighbour classifier", options.Knn),
    "linear": ("evaluate a run's features by a linear classifier, the paper's protocol", options.LinearProbe),
    "finetune": ("train a classifier from an encoder, end to end or on frozen features (4.2, A.6, A.7)", None),
    "predict": ("classify images by a run of moco finetune", options.Predict),
    "detect": ("train a detector from an encoder, evaluate it, use it (section 4.2)", None),
    "segment": ("train semantic segmentation from an encoder (appendix A.5)", None),
    "embed": ("write the features of a data set to a file, with names and labels", options.Embed),
    "search": ("find the images nearest to given ones, as a table and a picture", options.Search),
    "duplicates": ("find near duplicates, and test images that are among the training images", options.Duplicates),
    "reproduce": ("run an experiment of the paper and report which findings are reproduced", options.Reproduce),
    "doctor": ("diagnose a run: what goes well or wrong, and what to change", options.Doctor),
    "export": ("write an encoder for torchvision, timm, Detectron2, mmdet, ONNX or the hub", options.Export),
    "report": ("write an HTML page about runs: curves, nearest neighbours, a map of the features", options.Report),
    "recipes": ("list the recipes, or show one", None),
}
"""What each does, and its options; those with None parse their own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line. Leaves by SystemExit: 2 after one line that names what to correct."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "RANK" in os.environ:  # else every rank that notices another's end prints a stack of C++ frames
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        _dispatch(words)
        if "RANK" in os.environ:
            _leave(0)
    except UserError as error:
        # Until ranks have joined, all raise the same errors of the command line.
        if isinstance(error, RankError) or os.environ.get("RANK", "0") == "0":
            print(f"moco: {error}", file=sys.stderr)
        _leave(2)
    except SystemExit as left:
        _leave(left.code)
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:
        _leave(0)


def _leave(code: object) -> None:
    """Leaves with this code; a rank at once: others may be gone, and what PyTorch's threads do at the end of a process
    may spoil the code of a run that is done."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    raise SystemExit(code)


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if words[0] in ("-V", "--version"):
        from moco import __version__

        print(f"moco {__version__}")
        return
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f": there are {', '.join(COMMANDS)}"
        raise UserError(f"no command {name!r}{hint}")
    if name == "pretrain" or COMMANDS[name][1] is None:  # what stands first decides what follows
        _command(name).main(rest)
        return
    if name == "data" and (not rest or rest[0] in ("-h", "--help")):
        _command("data").list_sources()
        rest = ["--help"]
    parsed: Any = parse(COMMANDS[name][1], rest, f"moco {name}")
    check_ranges(parsed)
    _command(name).run(parsed)


def _command(name: str) -> Any:
    return importlib.import_module(f"moco.cli.commands.{name}")


def _overview() -> str:
    rows = "\n".join(f"  {name:10} {about}" for name, (about, _) in COMMANDS.items())
    return (
        "moco: visual features from images without labels, by momentum contrast (He et al., CVPR 2020)\n\n"
        f"usage: moco COMMAND ...\n\n{rows}\n\n"
        "moco COMMAND --help lists the options of a command, moco pretrain RECIPE --help those of a recipe.\n"
        "On several GPUs: torchrun --nproc-per-node=N -m moco COMMAND ..."
    )
