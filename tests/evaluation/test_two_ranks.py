"""Ranks that share the work find what one finds."""

import torch

from tests.evaluation.two_ranks import K, results, source
from tests.ranks import on_ranks


def test_two_ranks_find_what_one_finds(tmp_path):
    on_ranks(2, "tests.evaluation.two_ranks", tmp_path / "result.pt")
    one, several = results(), torch.load(tmp_path / "result.pt")
    # kNN: the neighbours of every test image, what they vote for, and how often that is right.
    assert one["cosines"].shape == (45, K)
    for name in ("labels", "predicted", "places"):
        assert torch.equal(one[name], several[name])
    assert one["knn"] == several["knn"] == (one["predicted"] == source().test.labels).sum().item() / 45
    assert 0.6 < one["knn"] < 1.0
    torch.testing.assert_close(several["cosines"], one["cosines"])
    torch.testing.assert_close(several["features"], one["features"])
    # The classifier, which moved from where it began.
    for cached in (True, False):
        torch.testing.assert_close(several[f"weight, {cached=}"], one[f"weight, {cached=}"], rtol=1e-4, atol=1e-6)
