"""Every mechanism is its literal definition: 10 steps in float64, to 1e-10, with BN in groups and shuffling on."""

import pytest

from tests.contrast.agreement import CASES


@pytest.mark.parametrize("case", CASES)
def test_is_its_definition(case):
    deviations = CASES[case]()
    assert {name: value for name, value in deviations.items() if not value < 1e-10} == {}
