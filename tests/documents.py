"""What the documents show, taken from them as it stands, to be run."""

import re
import shlex
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from moco.cli import main as cli

OUTSIDE = {"embedding-atlas", "pip", "sbatch", "tensorboard"}
"""Other programs that the documents start."""
PARSE_THEMSELVES = {"pretrain", "finetune", "detect", "segment"}


class Block(NamedTuple):
    """A fenced block of a document, `bash` or `python`."""

    language: str
    text: str


def blocks(document: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"```(bash|python)\n(.*?)```", document, re.S)]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a bash block, comments left out; a backslash joins a line with the next."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def words_of_moco(command: list[str]) -> list[str] | None:
    """What `moco` is given, the words of torchrun before it left out; None of another program's command."""
    if command[0] == "torchrun":
        place = command.index("-m")
        assert command[place + 1] == "moco", command
        return command[place + 2 :]
    return command[1:] if command[0] == "moco" else None


def understood(words: list[str]) -> Any:
    """What the function that runs a command is called with, by words whose options are right. It is not run."""
    called: list[Any] = []
    import_command, stand_in = cli._command, SimpleNamespace(run=called.append, main=called.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_command", lambda name: import_command(name) if name in PARSE_THEMSELVES else stand_in)
        patch.setattr("moco.cli.commands.pretrain.pretrain", lambda config, *_: called.append(config))
        patch.setattr("moco.cli.commands.transfer._train", lambda _, __, options, *___: called.append(options.config))
        cli.main(words)
    (what,) = called
    return what
