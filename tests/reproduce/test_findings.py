import math

import pytest

from moco.reproduce.experiment import Claim
from moco.reproduce.findings import by_cell, examine, measured, ordering


def results(**values: list[float]) -> dict:
    return by_cell([{"series": name, "x": 1, "linear": value} for name, seeds in values.items() for value in seeds])


def finding(alike: bool = False, **values: list[float]):
    return examine(Claim("a is above b", ("a", 1), ("b", 1), alike=alike), results(**values))


def test_mean_and_standard_deviation_in_per_cent():
    found = measured(results(a=[0.5, 0.52])["a", 1], "linear")
    assert found.mean == pytest.approx(51)
    assert found.std == pytest.approx(math.sqrt(2))
    assert found.seeds == 2


def test_the_interval_is_student_s_with_the_standard_deviation_of_all_settings():
    # Two pairs, each with a standard deviation of 1 point: 2 degrees of freedom, t = 4.30.
    one = math.sqrt(0.5) / 100
    found = finding(a=[0.6 - one, 0.6 + one], b=[0.5 - one, 0.5 + one])
    assert found.difference == pytest.approx(10)
    assert found.uncertainty == pytest.approx(4.30, abs=0.01)
    assert found.verdict == "shows"


def test_the_standard_deviation_is_that_of_all_grids():
    one = math.sqrt(0.5) / 100
    grid = results(a=[0.6 - one, 0.6 + one], b=[0.5 - one, 0.5 + one])
    found = examine(Claim("a is above b", ("a", 1), ("b", 1)), grid, [grid, grid])
    assert found.uncertainty == pytest.approx(2.78, abs=0.01)  # 4 degrees of freedom


@pytest.mark.parametrize(
    ("a", "b", "alike", "verdict"),
    [
        ([0.60, 0.61], [0.50, 0.51], False, "shows"),
        ([0.50, 0.51], [0.60, 0.61], False, "the other way round"),
        ([0.50, 0.55], [0.51, 0.53], False, "within the uncertainty"),
        ([0.50, 0.55], [0.51, 0.53], True, "no difference seen"),
        ([0.60, 0.61], [0.50, 0.51], True, "they differ"),
        ([0.60], [0.50], False, "one seed: the uncertainty is unknown"),
        ([0.60], [], False, "not measured"),
    ],
)
def test_verdicts(a, b, alike, verdict):
    assert finding(alike, a=a, b=b).verdict == verdict


def test_a_run_that_diverges_is_below():
    grouped = by_cell([{"series": "a", "x": 1, "linear": 0.5}, {"series": "b", "x": 1, "diverged": "not finite"}])
    assert examine(Claim("a is above b", ("a", 1), ("b", 1)), grouped).verdict == "shows: the other diverged"
    assert measured(grouped["b", 1], "linear").diverged == 1
    assert examine(Claim("b is above a", ("b", 1), ("a", 1)), grouped).verdict == "the other way round: it diverged"


def test_the_ordering_in_a_sentence():
    higher, lower = [0.60, 0.61], [0.50, 0.51]
    shows, reversed_, chance = finding(a=higher, b=lower), finding(a=lower, b=higher), finding(a=lower, b=[0.49, 0.52])
    assert ordering([shows]) == (
        "The paper's ordering holds: 1 of 1 findings show; a difference is known to ± 3.0 points or better, at 95 %."
    )
    assert ordering([shows, reversed_, chance]).startswith(
        "The paper's ordering holds in part: 1 of 3 findings show, 1 come out otherwise, 1 undecided; "
    )
    assert (
        ordering([finding(a=[0.6], b=[0.5])])
        == "The paper's ordering does not show: 0 of 1 findings show, 1 undecided."
    )
