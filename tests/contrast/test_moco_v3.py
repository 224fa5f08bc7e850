"""MoCo v3, held against Algorithm 1 of its paper written out literally; and BN synchronised over ranks."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from moco.contrast import MoCoV3, SyncBatchNorm, momentum_update, synchronise_batch_norm
from moco.contrast.heads import mlp
from tests.contrast.test_moco import batch, bn_encoder, run_ranks, small_encoder


def contrast(queries, keys, tau):
    """ctr of the paper: each query's cross entropy over all keys of the batch, its own being right, times 2 tau."""
    losses = []
    for i, query in enumerate(queries):
        logits = [(query @ key) / tau for key in keys]
        losses.append(-torch.log(logits[i].exp() / sum(one.exp() for one in logits)))
    return 2 * tau * torch.stack(losses).mean()


@pytest.mark.parametrize(("layers", "last_bn"), [(2, False), (3, True)])
def test_is_its_algorithm_1(layers, last_bn):
    """12 steps: loss, key parameters, and m, which goes from 0.9 to 1 by a cosine over 10 of them."""
    torch.manual_seed(0)
    mechanism = MoCoV3(
        bn_encoder(), 8, 0.9, 0.5, total_steps=10, hidden=24, projector_layers=layers, predictor_bn=last_bn
    )
    f_q, predict, f_k = (copy.deepcopy(part) for part in (mechanism.query, mechanism.predictor, mechanism.key))
    trained = [*f_q.parameters(), *predict.parameters()]
    ours = torch.optim.SGD([p for p in mechanism.parameters() if p.requires_grad], lr=0.02)
    literal = torch.optim.SGD(trained, lr=0.02)
    for step in range(12):
        m = 1 - (1 - 0.9) * (math.cos(math.pi * min(step, 10) / 10) + 1) / 2
        assert float(mechanism.current_momentum()) == pytest.approx(m, abs=1e-12)
        x1, x2 = batch(step)
        with torch.no_grad():
            for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                p_k.copy_(m * p_k + (1 - m) * p_q)
            k1, k2 = (normalize(f_k(x), dim=1) for x in (x1, x2))
        q1, q2 = (normalize(predict(f_q(x)), dim=1) for x in (x1, x2))
        loss = contrast(q1, k2, 0.5) + contrast(q2, k1, 0.5)
        literal.zero_grad()
        loss.backward()
        literal.step()
        result = mechanism(x1, x2)
        ours.zero_grad()
        result.loss.backward()
        ours.step()
        assert result.loss.item() == pytest.approx(loss.item(), abs=1e-5)
        right = [(q @ k.T).argmax(dim=1) == torch.arange(len(q)) for q, k in ((q1, k2), (q2, k1))]
        assert result.accuracy.item() == pytest.approx(torch.cat(right).float().mean().item())
        for mine, theirs in zip(mechanism.key.parameters(), f_k.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-5)
    parameters = [*mechanism.query.parameters(), *mechanism.predictor.parameters()]
    for mine, theirs in zip(parameters, trained, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-4)
    assert int(mechanism.steps) == 12


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


def test_a_momentum_in_a_tensor_is_the_same_update():
    torch.manual_seed(0)
    query, keys = small_encoder(), [small_encoder()]
    keys.append(copy.deepcopy(keys[0]))
    momentum_update(keys[0], query, 0.9)
    momentum_update(keys[1], query, torch.tensor(0.9, dtype=torch.float64))
    for one, other in zip(keys[0].parameters(), keys[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-7)


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


def test_it_has_no_parts():
    with pytest.raises(ValueError, match="cannot be taken in parts"):
        next(MoCoV3(small_encoder(), 8).parts(*batch(0), count=2))


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


def test_two_ranks_are_one(tmp_path):
    """Losses, weights and BN's running statistics after 6 steps: BN and keys span the ranks."""
    for ranks in (2, 1):
        run_ranks(ranks, "two_ranks_moco_v3.py", tmp_path)
    two, one = (torch.load(tmp_path / f"moco-v3-{ranks}.pt") for ranks in (2, 1))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["same_on_all_ranks"]
    for name, value in one["state"].items():
        assert torch.allclose(two["state"][name], value, rtol=0, atol=1e-4), name
    assert two["refused"].startswith("BN over ranks: the encoder holds a GroupBatchNorm")


def test_on_one_rank_synchronised_bn_is_bn():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.BatchNorm2d(4))
    ours = synchronise_batch_norm(copy.deepcopy(plain))
    assert isinstance(ours[1], SyncBatchNorm)
    images = torch.randn(6, 3, 5, 5)
    for mode in (True, True, False):
        assert torch.equal(ours.train(mode)(images), plain.train(mode)(images))
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in ours.state_dict().items())
