import copy

import pytest
import torch
from torch import nn

from moco.contrast import MoCoV3
from moco.contrast.heads import mlp
from tests.contrast.test_moco import batch, bn_encoder, small_encoder


def test_heads_are_those_of_the_released_code():
    """Linear without bias, BN and ReLU between; the last BN without scale and shift, or absent."""
    kinds = [type(layer).__name__ for layer in mlp([5, 6, 6, 4])]
    assert kinds == ["Linear", "SyncBatchNorm", "ReLU"] * 2 + ["Linear", "SyncBatchNorm"]
    layers = [(layer.in_features, layer.out_features) for layer in mlp([5, 6, 6, 4]) if isinstance(layer, nn.Linear)]
    assert layers == [(5, 6), (6, 6), (6, 4)]
    assert mlp([5, 6, 4])[-1].affine is False
    assert mlp([5, 6, 4])[1].affine is True
    assert isinstance(mlp([5, 6, 4], last_bn=False)[-1], nn.Linear)
    assert all(layer.bias is None for layer in mlp([5, 6, 4]) if isinstance(layer, nn.Linear))


def test_is_symmetric():
    torch.manual_seed(0)
    mechanism = MoCoV3(small_encoder(), 8, hidden=16)
    view1, view2 = batch(0)
    one = mechanism(view1, view2).loss.item()
    assert mechanism(view2, view1).loss.item() == pytest.approx(one, abs=1e-6)


def test_only_query_and_predictor_are_trained():
    mechanism = MoCoV3(small_encoder(), 8, hidden=16)
    mechanism(*batch(0)).loss.backward()
    parameters = {"query": mechanism.query, "predictor": mechanism.predictor}
    for part in parameters.values():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert not any(p.requires_grad for p in mechanism.key.parameters())


def test_without_total_steps_the_momentum_stays():
    mechanism = MoCoV3(small_encoder(), 8, 0.7, hidden=16)
    mechanism(*batch(0))
    assert mechanism.current_momentum() == 0.7


def test_the_state_dict_is_the_whole_state_and_evaluation_changes_none():
    torch.manual_seed(0)
    one, two = (MoCoV3(bn_encoder(), 8, hidden=16, total_steps=5) for _ in range(2))
    for step in range(3):
        one(*batch(step))
    two.load_state_dict(one.state_dict())
    assert two.current_momentum() == one.current_momentum() > 0.99
    assert torch.equal(one(*batch(3)).loss, two(*batch(3)).loss)
    before = copy.deepcopy(one.state_dict())
    one.eval()(*batch(4))
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())
    assert any(name.startswith("query.backbone.") for name in before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"momentum": 1.1},
        {"temperature": 0},
        {"hidden": 0},
        {"projector_layers": 0},
        {"total_steps": 0},
    ],
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"is above 0|at least 1|is in 0\.\.1"):
        MoCoV3(nn.Linear(4, 4), **wrong)
