"""On several gloo ranks every mechanism is its literal definition on the whole batch, and collectives are exact."""

import pytest
import torch

from tests.ranks import on_ranks


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_are_one(ranks, tmp_path):
    on_ranks(ranks, "tests.contrast.ranks", tmp_path)
    for rank in range(ranks):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert len(results) == 10
        wrong = {case: {name: d for name, d in found.items() if not d < 1e-10} for case, found in results.items()}
        assert {case: found for case, found in wrong.items() if found} == {}
