"""Bad input is reported in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. Its message is what is wrong, where, and what to do; the command line prints it, with exit code 2."""

    agreed = False
    """Raised on every rank alike, so that the main rank alone prints it."""


class RankError(UserError):
    """What ended all of several ranks; the one that raises it is the one that prints it."""


def require_all(rules: list[tuple[bool, str]]) -> None:
    """Raises UserError with the message of the first rule that does not hold."""
    for holds, message in rules:
        if not holds:
            raise UserError(message)


def one_line(error: BaseException) -> str:
    """What is wrong, in one line: of an OSError without its number and file, of a YAML error with its line number."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}: {problem}"
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """ ": did you mean resnet50?", or "" if no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f": did you mean {near[0]}?" if near else ""
