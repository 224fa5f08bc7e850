"""What an experiment is: a grid of settings, each a run with several seeds, and the findings that it may show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from moco.runs.config import Config
from moco.runs.options import with_options
from moco.runs.published import Published
from moco.runtime.errors import UserError

Scale = Literal["cpu", "gpu", "imagenet"]
Changes = dict[str, Any]
"""Options by name, as of `with_options`."""
Measure = Literal["linear", "knn", "contrastive"]
MEASURES: dict[str, str] = {
    "linear": "linear accuracy (%)",
    "knn": "kNN accuracy (%)",
    "contrastive": "contrastive accuracy (%), second half",
}


@dataclass(frozen=True)
class Cell:
    """One setting of a grid, which runs with several seeds."""

    series: str
    """The line of the figure that it belongs to."""
    x: float | str
    """Where on that line."""
    config: Config
    published: Published | None = None

    @property
    def spelled(self) -> str:
        """x, as a table shows it."""
        return self.x if isinstance(self.x, str) else f"{self.x:g}" if isinstance(self.x, float) else f"{self.x:,}"

    @property
    def label(self) -> str:
        """Series and x, as a table shows them."""
        return f"{self.series} {self.spelled}".strip()

    @property
    def name(self) -> str:
        """What its runs' folders begin with."""
        return f"{self.series}-{self.x}".lower().replace(" ", "-").replace("/", "-")


@dataclass(frozen=True)
class Claim:
    """A finding of the paper: one setting does better than another, or as well."""

    text: str
    better: tuple[str, float | str]
    """Series and x."""
    worse: tuple[str, float | str]
    measure: Measure = "linear"
    alike: bool = False
    """The finding is that the two do not differ."""


@dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    about: str
    """Its question, and what the paper found, in a sentence or two."""
    axis: str
    """What x is; "epoch" for curves."""
    grid: Callable[[Scale, Changes], list[Cell]]
    claims: Callable[[Scale], list[Claim]]
    measures: tuple[Measure, ...] = ("linear", "knn")
    """The first is the one that is drawn and compared with what is published."""
    seeds: int = 3
    """On a CPU or one GPU; ImageNet has 1."""
    note: str = ""
    """What to know of its settings below the paper's scale."""

    def cells(self, scale: Scale, changes: Changes | None = None) -> list[Cell]:
        """Its settings, with some options changed in all. Raises UserError for an option that the grid is about."""
        changes = changes or {}
        cells = self.grid(scale, changes)
        for name, value in changes.items():
            others = [cell for cell in cells if with_options(cell.config, **{name: value}) != cell.config]
            if 2 * len(others) > len(cells):  # a few may derive theirs, such as end-to-end's learning rate
                raise UserError(f"{name}: cannot be set to {value}: it is what {self.name} varies")
        if len({cell.config for cell in cells}) < len(cells):
            raise UserError(f"{', '.join(changes)}: cannot be set: settings of {self.name} would be the same")
        return cells
