"""Neighbours in many dimensions are neighbours on the map."""

import torch

from moco.evaluation import nearest
from moco.report.map import draw_map


def clusters(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in 64 dimensions around 6 centres that are far apart, and which centre each belongs to."""
    label = torch.arange(n) % 6
    return 3 * torch.randn(6, 64, generator=generator)[label] + torch.randn(n, 64, generator=generator), label


def test_clusters_stay_apart():
    points, label = clusters(300, torch.Generator().manual_seed(0))
    _, neighbours = nearest(points, points, 15, torch.arange(300))
    places = draw_map(points, neighbours, steps=300)
    assert places.shape == (300, 2)
    distances = torch.cdist(places, places).fill_diagonal_(torch.inf)
    near = distances.topk(10, largest=False).indices
    assert (label[near] == label[:, None]).float().mean() > 0.98
    # A principal plane alone does not do it, nor do places at random.
    assert (label[torch.randint(300, (300, 10))] == label[:, None]).float().mean() < 0.3


def test_it_is_a_function_of_its_input_and_leaves_the_random_state_alone():
    points, _ = clusters(60, torch.Generator().manual_seed(0))
    _, neighbours = nearest(points, points, 5, torch.arange(60))
    state = torch.get_rng_state()
    first, second = (draw_map(points, neighbours, steps=20) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_few_points_have_a_map():
    for n in (1, 2, 3):
        points = torch.randn(n, 8)
        _, neighbours = nearest(points, points, 15, torch.arange(n))
        assert neighbours.shape == (n, n - 1)
        places = draw_map(points, neighbours, steps=5)
        assert places.shape == (n, 2)
        assert places.isfinite().all()
