"""faiss finds what the exact search finds, where it searches every cell; and when it is used."""

from importlib.util import find_spec

import pytest
import torch

from moco.evaluation import Neighbours, approximate, nearest
from moco.evaluation.approximate import FaissNeighbours, neighbours_by
from moco.runtime.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
BANK, QUERIES = torch.randn(500, 8, generator=GENERATOR), 3 * torch.randn(20, 8, generator=GENERATOR)


@pytest.mark.parametrize("own", [None, torch.arange(20)])
@pytest.mark.parametrize("batch", [7, 500])
def test_all_cells_are_the_exact_search(monkeypatch, own, batch):
    monkeypatch.setattr(approximate, "PROBED", 1000)
    search = FaissNeighbours(QUERIES, 9, 500, own)
    assert search.cells > 5
    for places in torch.arange(500).split(batch):
        search.add(BANK[places] * (1 + places[:, None]), places)
    cosines, places = search.result()
    expected, where = nearest(BANK, QUERIES, 9, own)
    assert torch.equal(places, where)
    torch.testing.assert_close(cosines, expected)


def test_few_cells_miss_little():
    search = FaissNeighbours(BANK[:100], 1, 500)
    search.add(BANK, torch.arange(500))
    assert search.result()[1][:, 0].tolist() == list(range(100))


def test_a_cell_without_enough_rows():
    search = FaissNeighbours(QUERIES, 5, 3, torch.zeros(20, dtype=torch.int64))
    search.add(BANK[:3], torch.arange(3))
    cosines, places = search.result()
    assert places.shape == (20, 5)
    assert [sorted(row) for row in places[:, :2].tolist()] == [[1, 2]] * 20
    assert bool((cosines[:, 2:] == -torch.inf).all())


@pytest.mark.parametrize(("index", "count", "kind"), [("auto", 10**6, 0), ("auto", 10**12, 1), ("exact", 10**12, 0)])
def test_auto_is_exact_up_to_a_million_images_with_one_another(index, count, kind):
    found = neighbours_by(index, QUERIES[:10], 1, count)
    assert type(found) is (Neighbours, FaissNeighbours)[kind]


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(approximate, "find_spec", lambda name: None if name == "faiss" else find_spec(name))
    with pytest.raises(UserError, match=r"pip install 'momentum-contrast\[faiss\]', or --index exact"):
        neighbours_by("faiss", QUERIES, 1, 10)
    neighbours_by("auto", QUERIES, 1, 10)
