import copy

import pytest
import torch
from torch import nn

from moco.contrast import EndToEnd
from tests.contrast.test_moco import batch, bn_encoder, small_encoder


def test_shuffles_what_bn_sees_and_nothing_else():
    torch.manual_seed(0)
    shuffled = EndToEnd(small_encoder(), dim=8)
    plain = copy.deepcopy(shuffled)
    plain.shuffle = False
    assert shuffled(*batch(0)).loss.item() == pytest.approx(plain(*batch(0)).loss.item(), abs=1e-6)
    grouped = EndToEnd(bn_encoder(), dim=8, bn_group=4)
    straight = copy.deepcopy(grouped)
    straight.shuffle = False
    assert grouped(*batch(0)).loss.item() != pytest.approx(straight(*batch(0)).loss.item(), abs=1e-6)


def test_symmetric_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    both = EndToEnd(small_encoder(), dim=8, symmetric=True)
    one = copy.deepcopy(both)
    one.symmetric = False
    view1, view2 = batch(0)
    expected = (one(view1, view2).loss + one(view2, view1).loss) / 2
    assert both(view1, view2).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_both_encoders_are_trained():
    mechanism = EndToEnd(small_encoder(), dim=8)
    mechanism(*batch(0)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mechanism.parameters())


def test_the_state_dict_is_the_whole_state_and_evaluation_changes_none():
    torch.manual_seed(0)
    one, two = (EndToEnd(bn_encoder(), dim=8, bn_group=4) for _ in range(2))
    one(*batch(0))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(*batch(0)).loss, two(*batch(0)).loss)
    before = copy.deepcopy(one.state_dict())
    one.eval()(*batch(0))
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


def test_evaluation_shuffles_nothing():
    torch.manual_seed(0)
    mechanism = EndToEnd(bn_encoder(), dim=8).eval()
    view = batch(0)[0]
    assert torch.equal(mechanism.encode_keys(view), torch.nn.functional.normalize(mechanism.key(view), dim=1))


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"bn_group": 1}, {"dim": 0}, {"head": "x"}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"is above 0|at least|a head is"):
        EndToEnd(nn.Linear(4, 4), **wrong)
