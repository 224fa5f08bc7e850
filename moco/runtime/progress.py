"""Progress of long work on stderr: a bar on a terminal, elsewhere a line every half minute; on the main rank alone."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from operator import length_hint
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from moco.runtime.ranks import is_main

Item = TypeVar("Item")
console = Console(stderr=True)
"""Whatever else is printed while a bar is shown goes through it, above the bar."""
_SECONDS = 30.0
"""Between two lines where there is no terminal."""


class Bar:
    """A bar over `total` steps, shown from its creation to `close`, or as a context manager.

    Args:
        title: what is done; text, not markup.
        total: None if it is not known.
        done: steps done before, which do not count for the time that is left.
        work: from a number of steps, what these first ones take, in any unit, where steps differ.
    """

    def __init__(self, title: str, total: int | None, done: int = 0, work: Callable[[int], float] = float) -> None:
        self.title, self.total, self.done, self.work = title, total, done, work
        self._first, self._start, self._printed = done, time.monotonic(), time.monotonic()
        self._pauses = 0.0  # seconds of those to come
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not is_main() or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(title, total=total, completed=done, text="", left="-:--")
        self._bar.start()

    def update(self, done: int, text: str = "") -> None:
        """Shows how many steps are done, and some text beside them."""
        self.done, now = done, time.monotonic()
        left = self._left(now)
        clock = "-:--" if left is None else str(timedelta(seconds=int(left))).removeprefix("0:")
        self._bar.update(self._task, completed=done, text=text, left=clock)
        if self._bar.disable and is_main() and now - self._printed > _SECONDS:
            self._printed = now
            console.print(self._line(now, text), markup=False, highlight=False, soft_wrap=True)

    def restart(self, done: int) -> None:
        """After so many steps the others take another time: what is left follows from those that are done from now."""
        self._first, self._start = done, time.monotonic()

    def pause(self, seconds: float, to_come: int) -> None:
        """Something beside the steps took so long, and will as many times as are to come."""
        self._start += seconds
        self._pauses = seconds * to_come

    def advance(self, steps: int = 1) -> None:
        """Shows that so many more steps are done."""
        self.update(self.done + steps)

    def _line(self, now: float, text: str) -> str:
        left = self._left(now)
        done = f"{self.title} {self.done}" + ("" if self.total is None else f"/{self.total}")
        return "  ".join(filter(None, [done, text, "" if left is None else f"{left:.0f} s left"]))

    def _left(self, now: float) -> float | None:
        """Seconds, None if they are not known."""
        if self.total is None or self.done == self._first:
            return None
        first, done, total = map(self.work, (self._first, self.done, self.total))
        return (now - self._start) * (total - done) / (done - first) + self._pauses

    def close(self) -> None:
        self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def track(items: Iterable[Item], title: str) -> Iterator[Item]:
    """The items, with a bar that advances as each is done."""
    with Bar(title, length_hint(items) or None) as bar:
        for item in items:
            yield item
            bar.advance()
