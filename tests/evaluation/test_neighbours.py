"""The nearest-neighbour search against its definition; how the bank is cut changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moco.evaluation import Neighbours, nearest, neighbours


def plain(bank: Tensor, queries: Tensor, k: int, own: Tensor | None = None) -> list[list[int]]:
    """By cosine, and of equal cosines the first in the bank, in float64."""
    cosines = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    return [
        sorted((j for j in range(len(bank)) if own is None or j != own[i]), key=lambda j, row=row: (-row[j], j))[:k]
        for i, row in enumerate(cosines.tolist())
    ]


def random(n: int = 97, m: int = 41, d: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = 1 + torch.arange(n)[:, None]  # they do not count
    return torch.randn(n, d, generator=generator) * lengths, 100 * torch.randn(m, d, generator=generator)


@pytest.mark.parametrize("k", [1, 5, 96, 97, 500])
def test_is_the_definition(k):
    bank, queries = random()
    cosines, places = nearest(bank, queries, k)
    assert places.tolist() == plain(bank, queries, k)
    assert (cosines.dtype, places.dtype) == (torch.float32, torch.int64)
    expected = F.cosine_similarity(queries[:, None], bank[places], dim=2)
    torch.testing.assert_close(cosines, expected)


@pytest.mark.parametrize(("block", "pairs"), [(1, 1), (10, 64), (96, 10_000)])
@pytest.mark.parametrize("batch", [1, 7, 97])
def test_neither_blocks_nor_batches_change_anything(monkeypatch, block, pairs, batch):
    bank, queries = random()
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    monkeypatch.setattr(neighbours, "_PAIRS", pairs)
    search = Neighbours(queries, 20)
    for places in torch.arange(97).flip(0).split(batch):  # nor does the order in which they come
        search.add(bank[places], places)
    assert search.result()[1].tolist() == plain(bank, queries, 20)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_of_equal_cosines_the_first_in_the_bank_counts(monkeypatch, block):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 4.0], [-1.0, 0.0], [-2.0, 0.0]])
    cosines, places = nearest(bank, torch.tensor([[1.0, 0.0], [0.0, -8.0]]), 6)
    assert places.tolist() == [[1, 3, 0, 2, 4, 5], [1, 3, 5, 6, 0, 2]]
    assert cosines.tolist() == [[1, 1, 0, 0, 0, -1], [0, 0, 0, 0, -1, -1]]


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_among_many_equal_cosines_too(k, left_out, share):
    """Rows along the axes have the cosines -1, 0 and 1 with each other; a share of them, the others are random."""
    generator = torch.Generator().manual_seed(k)
    axes = torch.eye(4)[torch.randint(4, (300,), generator=generator)] * (-2.0) ** torch.randint(3, (300, 1))
    bank = torch.randn(300, 4, generator=generator)
    along = torch.rand(300, generator=generator) < share
    bank[along] = axes[along]
    own = torch.arange(0, 300, 3)
    queries, excluded = torch.cat((axes[:50], bank[own][:50])), own[:50].repeat(2) if left_out else None
    assert nearest(bank, queries, k, excluded)[1].tolist() == plain(bank, queries, k, excluded)


@pytest.mark.parametrize("pairs", [1, 300, 10_000])
@pytest.mark.parametrize("k", [1, 4, 96, 200])
def test_the_query_itself_is_left_out(monkeypatch, pairs, k):
    monkeypatch.setattr(neighbours, "_PAIRS", pairs)
    bank, _ = random()
    own = torch.arange(97).flip(0)[:30]
    assert nearest(bank, bank[own], k, own)[1].tolist() == plain(bank, bank[own], k, own)


def test_a_bank_of_the_query_alone_has_no_neighbour():
    cosines, places = nearest(torch.ones(1, 2), torch.ones(1, 2), 3, torch.tensor([0]))
    assert cosines.shape == places.shape == (1, 0)


def test_no_query_and_no_bank():
    assert nearest(torch.ones(4, 2), torch.ones(0, 2), 3)[1].shape == (0, 3)
    assert nearest(torch.ones(0, 2), torch.ones(4, 2), 3)[1].shape == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_how_features_are_kept_not_how_they_are_compared(dtype):
    """Cosines of 1 - 1e-5 and 1 - 2e-5, which half precision takes for equal; and lengths whose squares overflow it."""
    angle = torch.tensor([0.0044, -0.0062, 0.0])
    bank = torch.stack((angle.cos(), angle.sin()), dim=1)
    queries = torch.tensor([[300.0, 0.0], [0.0, 300.0]], dtype=dtype)
    cosines, places = nearest(bank, queries, 3)
    assert places.tolist() == [[2, 0, 1], [0, 2, 1]]
    torch.testing.assert_close(cosines[0], angle.cos()[[2, 0, 1]], rtol=0, atol=1e-6)
    large = torch.full((2, 64), 60000.0, dtype=dtype)
    torch.testing.assert_close(nearest(large, large, 2)[0], torch.ones(2, 2))


def test_cosines_come_back_as_they_were():
    cosines = torch.tensor([[-1.0, -1e-30, 0.0, -0.0, 1e-30, 0.3, 1.0]])
    places = torch.tensor([0, 2**32 - 1, 7, 5, 1, 2, 3])
    keys = neighbours._keys(cosines, places)
    assert keys.argsort().tolist() == [[0, 1, 2, 3, 4, 5, 6]]  # both zeros are one: place 7 is behind 5
    back, index = neighbours._cosines_and_places(keys)
    assert torch.equal(back, cosines)
    assert torch.equal(index[0], places)
