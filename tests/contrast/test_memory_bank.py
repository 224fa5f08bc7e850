import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from moco.contrast import MemoryBank
from tests.contrast.test_moco import batch, bn_encoder, small_encoder


def test_only_the_query_encoder_is_trained():
    """Queries are contrasted with what the vectors were; then the vectors move, without gradient."""
    mechanism = MemoryBank(small_encoder(), 30, dim=8, draws=10)
    mechanism(batch(0)[0], torch.arange(12)).loss.backward()
    assert all(p.grad is not None for p in mechanism.query.parameters())
    assert not mechanism.vectors.requires_grad
    assert list(mechanism.parameters()) == list(mechanism.query.parameters())


def test_vectors_start_on_the_sphere_and_stay_there():
    mechanism = MemoryBank(small_encoder(), 30, dim=8, draws=10)
    for _ in range(2):
        assert torch.allclose(mechanism.vectors.norm(dim=1), torch.ones(30), atol=1e-6)
        mechanism(batch(0)[0], torch.arange(12))


def test_a_momentum_of_0_keeps_the_last_queries():
    mechanism = MemoryBank(small_encoder(), 30, dim=8, draws=10, momentum=0.0)
    view, images = batch(0)[0], torch.arange(12).flip(0)
    mechanism(view, images)
    assert torch.allclose(mechanism.vectors[images], normalize(mechanism.query(view), dim=1), atol=1e-6)


def test_every_step_draws_another_dictionary_of_the_whole_bank():
    mechanism = MemoryBank(small_encoder(), 30, dim=8, draws=1000)
    first = mechanism.draw()
    assert set(first.tolist()) == set(range(30))
    mechanism(batch(0)[0], torch.arange(12))
    assert not torch.equal(mechanism.draw(), first)


def test_the_state_dict_is_the_whole_state_and_evaluation_changes_none():
    torch.manual_seed(0)
    one, two = (MemoryBank(bn_encoder(), 20, dim=8) for _ in range(2))
    inputs = batch(0)[0], torch.arange(12)
    one(*inputs)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(*inputs).loss, two(*inputs).loss)
    before = copy.deepcopy(one.state_dict())
    one.eval()(*inputs)
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [{"images": 1}, {"images": 10, "draws": 0}, {"images": 10, "momentum": 1.5}, {"images": 10, "temperature": 0}],
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"is above 0|at least|is in 0\.\.1"):
        MemoryBank(nn.Linear(4, 4), **wrong)
