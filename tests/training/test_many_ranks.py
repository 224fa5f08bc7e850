"""The paper's 64 ranks of 16 images, played in one process."""

import pytest
import torch

from moco.contrast import collectives
from moco.contrast.batchnorm import permutation
from moco.data.order import training_plan
from moco.runs.config import check
from moco.runs.recipes.recipes import RECIPES

RANKS = 64
CONFIG = RECIPES["web-r50"].config
BATCH = CONFIG.training.batch_size


@pytest.fixture
def be_rank(monkeypatch):
    """`be_rank(3)`: from now on this process is rank 3 of 64."""
    current = [0]
    monkeypatch.setattr(collectives, "world_size", lambda: RANKS)
    monkeypatch.setattr(collectives, "rank", lambda: current[0])
    return lambda number: current.__setitem__(0, number)


def test_the_recipe_starts_on_64_ranks():
    check(CONFIG, ranks=RANKS)
    assert CONFIG.contrast.bn_group == BATCH // RANKS == 16


def test_64_ranks_share_the_order_of_one(be_rank):
    """In every epoch every image comes once, also where a batch lies in two epochs."""
    n, steps = 5000, 11
    asked = []
    for number in range(RANKS):
        be_rank(number)
        asked.append(list(training_plan(n, BATCH, 7, 0, steps)))
    rows = [torch.cat([part for own in asked for part in (own[step].images,)]) for step in range(steps)]
    assert all(len(row) == BATCH for row in rows)
    row = torch.cat(rows)
    for epoch in (0, 1):
        assert row[epoch * n : (epoch + 1) * n].sort().values.equal(torch.arange(n))
    assert not row[:n].equal(row[n : 2 * n])


def test_64_ranks_exchange_the_images_of_the_permutation(be_rank, monkeypatch):
    """Each rank gets what `gather(images)[local(order)]` would give it, and no rank is sent more than its share."""
    each = BATCH // RANKS
    images = torch.randn(BATCH, 3, 2, 2).to(memory_format=torch.channels_last)
    order = permutation(BATCH, torch.tensor(3 * BATCH))
    assert order.sort().values.equal(torch.arange(BATCH))
    sent: dict[int, list[torch.Tensor]] = {}

    def record(incoming, outgoing, received, outgoing_counts):
        assert sum(received) == sum(outgoing_counts) == each == len(outgoing)
        sent[collectives.rank()] = list(outgoing.split(outgoing_counts))

    def deliver(incoming, outgoing, received, outgoing_counts):
        incoming.copy_(torch.cat([sent[other][collectives.rank()] for other in range(RANKS)]))
        assert received == [len(sent[other][collectives.rank()]) for other in range(RANKS)]

    for transport in (record, deliver):
        monkeypatch.setattr("torch.distributed.all_to_all_single", transport)
        for number in range(RANKS):
            be_rank(number)
            got = collectives.exchange(collectives.local(images), order)
            if transport is deliver:
                assert got.equal(images[collectives.local(order)])
