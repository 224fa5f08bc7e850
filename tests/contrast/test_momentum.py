import copy

import pytest
import torch
from torch import nn

from moco.contrast import momentum_update


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999, 1.0])
def test_momentum_update_is_eq_2(momentum):
    query = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    key = copy.deepcopy(query)
    for p in query.parameters():
        nn.init.normal_(p)
    before = [p.clone() for p in key.parameters()]
    momentum_update(key, query, momentum)
    for p_k, old, p_q in zip(key.parameters(), before, query.parameters(), strict=True):
        assert torch.allclose(p_k, momentum * old + (1 - momentum) * p_q, atol=1e-6)


def test_a_momentum_in_a_tensor_is_the_same_update():
    torch.manual_seed(0)
    query, keys = nn.Linear(5, 4), [nn.Linear(5, 4)]
    keys.append(copy.deepcopy(keys[0]))
    momentum_update(keys[0], query, 0.9)
    momentum_update(keys[1], query, torch.tensor(0.9, dtype=torch.float64))
    for one, other in zip(keys[0].parameters(), keys[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-7)
