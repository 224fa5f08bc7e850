"""Several ranks as plain processes, so that each rank's exit code and words are seen."""

import atexit
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_server: list[subprocess.Popen[str]] = []


@dataclass
class Rank:
    """How a rank ended."""

    code: int
    out: str
    err: str


def on_ranks(ranks: int, program: str, *words: str | Path) -> None:
    """`main(words)` of a test's module on so many ranks; fails if one of them does."""
    ended = run_ranks(ranks, " ".join(map(str, words)), [Path.cwd()], program=program)
    assert [rank.code for rank in ended] == [0] * ranks, "\n".join(rank.err[-3000:] for rank in ended)


def run_ranks(
    ranks: int, words: str | list[str], folders: list[Path], sabotage: str = "", program: str = "moco.cli.main"
) -> list[Rank]:
    """`moco WORDS` on so many ranks (1: as an ordinary process), each in its folder: how each ended.

    Args:
        words: one command line, or one for each rank.
        folders: where each runs; one for all, or one for each.
        sabotage: what goes wrong, by the names of `tests.sabotage`, if more than one with a blank between.
        program: whose `main(words)` is run.
    """
    if not _server:
        command = [sys.executable, "-m", "tests.rank_server"]
        _server.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        atexit.register(_server[0].kill)
    lines = [words] * ranks if isinstance(words, str) else words
    places = folders * (ranks // len(folders))
    with tempfile.TemporaryDirectory() as out:
        jobs = [
            {"words": line.split(), "folder": str(place), "sabotage": sabotage}
            for line, place in zip(lines, places, strict=True)
        ]
        assert _server[0].stdin is not None
        assert _server[0].stdout is not None
        _server[0].stdin.write(json.dumps({"program": program, "ranks": jobs, "out": out}) + "\n")
        _server[0].stdin.flush()
        codes = json.loads(_server[0].stdout.readline())
        texts = [[(Path(out) / f"{rank}.{kind}").read_text() for kind in ("out", "err")] for rank in range(ranks)]
    return [Rank(code, *both) for code, both in zip(codes, texts, strict=True)]
