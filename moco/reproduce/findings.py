"""The statistics of a grid's results: mean and standard deviation over seeds, and whether a finding is reproduced."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from moco.reproduce.experiment import Claim, Measure

# Student's t for a two-sided 95 % interval, by degrees of freedom from 1.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)


def t_95(degrees: int) -> float:
    """Student's t for a two-sided 95 % interval; NaN without a degree of freedom."""
    return math.nan if degrees < 1 else _T[min(degrees, len(_T)) - 1]


class Measured(NamedTuple):
    """Over the seeds of one setting, in per cent."""

    mean: float
    std: float | None
    """Standard deviation over seeds; None of a single seed."""
    seeds: int
    diverged: int = 0
    """Runs whose loss became infinite; they are not in the mean."""


Results = dict[tuple[str, float | str], list[dict[str, Any]]]
"""The result.json of each seed, by series and x."""


def by_cell(results: list[dict[str, Any]]) -> Results:
    """The results of each setting."""
    grouped: Results = defaultdict(list)
    for result in results:
        grouped[result["series"], result["x"]].append(result)
    return dict(grouped)


def measured(results: list[dict[str, Any]], measure: Measure) -> Measured:
    """Mean and standard deviation of a setting; the mean of none is nan."""
    values = [100 * result[measure] for result in results if measure in result]
    std = statistics.stdev(values) if len(values) > 1 else None
    mean = statistics.fmean(values) if values else math.nan
    return Measured(mean, std, len(values), sum("diverged" in result for result in results))


class Finding(NamedTuple):
    claim: Claim
    difference: float
    """In points; nan if a setting was not measured."""
    uncertainty: float | None
    """Half of the 95 % interval; None where no setting has two seeds."""
    verdict: str


def examine(claim: Claim, results: Results, grids: Iterable[Results] = ()) -> Finding:
    """Whether a claim shows, by the difference of two means.

    The standard deviation over seeds is taken to be the same in all settings of the grid, and so is pooled over all of
    them: two or three seeds of one setting are too few. So it is over all grids run at several values of an option.
    """
    better, worse = (results.get(key, []) for key in (claim.better, claim.worse))
    a, b = measured(better, claim.measure), measured(worse, claim.measure)
    if b.diverged and not b.seeds and a.seeds and not claim.alike:
        return Finding(claim, math.nan, None, "shows: the other diverged")
    if a.diverged and not a.seeds and b.seeds and not claim.alike:
        return Finding(claim, math.nan, None, "the other way round: it diverged")
    if not (a.seeds and b.seeds):
        return Finding(claim, math.nan, None, "not measured")
    difference = a.mean - b.mean
    settings = [runs for grid in (grids or [results]) for runs in grid.values()]
    cells = [m for runs in settings if (m := measured(runs, claim.measure)).std is not None]
    freedom = sum(m.seeds - 1 for m in cells)
    if not freedom:
        return Finding(claim, difference, None, "one seed: the uncertainty is unknown")
    pooled = math.sqrt(sum((m.seeds - 1) * (m.std or 0) ** 2 for m in cells) / freedom)
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.5 / freedom
    uncertainty = t * pooled * math.sqrt(1 / a.seeds + 1 / b.seeds)
    return Finding(claim, difference, uncertainty, _verdict(claim, difference, uncertainty))


def ordering(findings: list[Finding]) -> str:
    """A sentence on whether the paper's ordering holds, with its uncertainty."""
    verdicts = [finding.verdict for finding in findings]
    shown = sum(verdict.startswith("shows") for verdict in verdicts)
    alike = sum(verdict == "no difference seen" for verdict in verdicts)
    other = sum(verdict.startswith(("they differ", "the other way round")) for verdict in verdicts)
    counts = [
        f"{shown} of {len(findings)} findings show",
        f"{alike} that two are alike, not contradicted" if alike else "",
        f"{other} come out otherwise" if other else "",
        f"{rest} undecided" if (rest := len(findings) - shown - alike - other) else "",
    ]
    holds = "holds" if shown + alike == len(findings) else "holds in part" if shown else "does not show"
    known = [finding.uncertainty for finding in findings if finding.uncertainty is not None]
    within = f"; a difference is known to ± {max(known):.1f} points or better, at 95 %" if known else ""
    return f"The paper's ordering {holds}: {', '.join(filter(None, counts))}{within}."


def _verdict(claim: Claim, difference: float, uncertainty: float) -> str:
    if claim.alike:
        return "no difference seen" if abs(difference) <= uncertainty else "they differ"
    if difference > uncertainty:
        return "shows"
    return "the other way round" if difference < -uncertainty else "within the uncertainty"
