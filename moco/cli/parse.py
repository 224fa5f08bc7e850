"""How a command line becomes a command's options. Nothing heavy is imported here."""

import io
import itertools
import re
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any, TypeVar

import tyro

from moco.runs.options import nearest_option
from moco.runtime.errors import UserError

Options = TypeVar("Options")


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
            flag, known = word.split("=")[0], _flags(options)
            hint = nearest_option(flag, known) or f" ({prog} --help lists them)"
            raise UserError(f"{prog}: no option {flag}{hint}")
    if unknown:
        raise UserError(f"{prog}: unexpected argument {' '.join(unknown)!r} ({prog} --help)")
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
