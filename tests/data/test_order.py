"""The order of images is a pure function of (seed, epoch), and in every epoch every image comes once."""

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moco.contrast import collectives as ranks
from moco.data import evaluation_plan, shuffled, training_plan


def order(n, seed, *key):
    return shuffled(torch.arange(n), n, seed, *key)


@given(n=st.integers(1, 2000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_shuffled_is_a_pure_permutation(n, seed, epoch):
    whole = order(n, seed, epoch)
    assert whole.sort().values.tolist() == list(range(n))
    torch.rand(3)
    some = torch.tensor([n - 1, 0, n // 2])
    assert torch.equal(shuffled(some, n, seed, epoch), whole[some])


def test_it_needs_no_memory_for_a_billion_images():
    n = 10**9
    places = torch.arange(n - 1000, n)
    images = shuffled(places, n, 0, 3)
    assert len(images.unique()) == 1000
    assert images.min() >= 0
    assert images.max() < n
    # As likely in one part of the set as in another: 1000 draws over 10 parts, within 4.5 standard deviations.
    assert (torch.bincount(images * 10 // n, minlength=10) - 100).abs().max() < 43


def test_it_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    order(100, 0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_permutations_differ_over_every_key():
    orders = [order(1000, seed, a, b) for seed in (0, 1, 2**32) for a in (0, 1) for b in (0, 1)]
    for i, one in enumerate(orders):
        assert (one != torch.arange(1000)).float().mean() > 0.98
        assert all((one != other).float().mean() > 0.98 for other in orders[:i])


def chi2_is_small(counts, draws):
    """Whether counts differ no more from the same for all than chance makes likely, at about the 0.01 % level."""
    expected, kinds = draws / counts.numel(), counts.numel()
    return ((counts - expected) ** 2 / expected).sum() < kinds - 1 + 4 * (2 * (kinds - 1)) ** 0.5


@pytest.mark.parametrize("n", [5, 16])
def test_every_image_is_as_likely_in_every_place_and_after_every_other(n):
    places, followers, draws = torch.zeros(n, n), torch.zeros(n, n), 1000
    for epoch in range(draws):
        images = order(n, 5, epoch)
        places[torch.arange(n), images] += 1
        followers[images[:-1], images[1:]] += 1
    assert chi2_is_small(places, draws * n)
    apart = ~torch.eye(n, dtype=torch.bool)
    assert chi2_is_small(followers[apart], draws * (n - 1))


def test_neighbours_go_separate_ways():
    whole = order(50_000, 1, 0).double()
    for pair in ((whole[:-1], whole[1:]), (torch.arange(50_000).double(), whole)):
        assert torch.corrcoef(torch.stack(pair))[0, 1].abs() < 0.02


@given(n=st.integers(1, 60), data=st.data(), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_training_plan_gives_every_image_once_in_every_epoch(n, data, seed):
    batch = data.draw(st.integers(1, 2 * n))
    steps = -(-3 * n // batch)
    plan = [asked.images.tolist() for asked in training_plan(n, batch, seed, 0, steps)]
    epochs = [asked.epoch.tolist() for asked in training_plan(n, batch, seed, 0, steps)]
    assert all(len(images) == batch for images in plan)
    seen = Counter(zip(chain(*epochs), chain(*plan), strict=True))
    assert max(seen.values()) == 1
    assert all((epoch, image) in seen for epoch in range(3) for image in range(n))
    resumed = data.draw(st.integers(0, steps))
    assert [asked.images.tolist() for asked in training_plan(n, batch, seed, resumed, steps)] == plan[resumed:]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_ranks_share_the_batches_of_one(monkeypatch, count):
    whole = list(training_plan(50, 12, 0, 0, 6))
    monkeypatch.setattr(ranks, "world_size", lambda: count)
    shares = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(list(training_plan(50, 12, 0, 0, 6)))
    for step, asked in enumerate(whole):
        assert torch.equal(torch.cat([share[step].images for share in shares]), asked.images)
        assert torch.equal(torch.cat([share[step].epoch for share in shares]), asked.epoch)


@given(n=st.integers(1, 200), batch=st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_evaluation_plan(n, batch):
    plan = list(evaluation_plan(n, batch))
    assert all(len(asked.images) == batch and not asked.epoch.any() for asked in plan)
    images = torch.cat([asked.images for asked in plan])
    assert images[:n].tolist() == list(range(n))
    assert len(images) < n + batch
    assert (images[n:] == n - 1).all()
