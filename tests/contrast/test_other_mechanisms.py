"""End-to-end and the memory bank, each held against its definition written out literally."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from moco.contrast import EndToEnd, MemoryBank
from moco.contrast.batchnorm import random_bits
from tests.contrast.test_moco import batch, bn_encoder, run_ranks, small_encoder


def softmax_loss(logits: list[list[torch.Tensor]]) -> torch.Tensor:
    """The mean over queries of -log(exp(first) / sum exp(all))."""
    return torch.stack([-torch.log(row[0].exp() / sum(one.exp() for one in row)) for row in logits]).mean()


def test_end_to_end_is_its_definition():
    """10 steps: query i against key i and, as negatives, the keys of the other images; both encoders by SGD."""
    torch.manual_seed(0)
    mechanism = EndToEnd(small_encoder(), dim=16, temperature=0.5)
    query, key = copy.deepcopy(mechanism.query), copy.deepcopy(mechanism.key)
    ours = torch.optim.SGD(mechanism.parameters(), lr=0.1)
    literal = torch.optim.SGD([*query.parameters(), *key.parameters()], lr=0.1)
    for step in range(10):
        view1, view2 = batch(step)
        result = mechanism(view1, view2)
        ours.zero_grad()
        result.loss.backward()
        ours.step()
        q, k = normalize(query(view1), dim=1), normalize(key(view2), dim=1)
        n = len(q)
        rows = [[q[i] @ k[j] / 0.5 for j in (i, *(j for j in range(n) if j != i))] for i in range(n)]
        loss = softmax_loss(rows)
        literal.zero_grad()
        loss.backward()
        literal.step()
        assert result.loss.item() == pytest.approx(loss.item(), abs=1e-5)
        wins = [row[0] > max(row[1:]) for row in rows]
        assert result.accuracy.item() == pytest.approx(sum(wins) / n)
    for mine, theirs in zip(mechanism.parameters(), [*query.parameters(), *key.parameters()], strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-5)
    assert any(not torch.equal(q, k) for q, k in zip(query.parameters(), key.parameters(), strict=True))


def test_end_to_end_over_two_ranks_is_one_rank_with_groups(tmp_path):
    """Loss, and both encoders' weights after 6 steps, with shuffling BN: the gradient crosses the ranks."""
    for ranks in (2, 1):
        run_ranks(ranks, "two_ranks_end_to_end.py", tmp_path)
    two, one = (torch.load(tmp_path / f"end-to-end-{ranks}.pt") for ranks in (2, 1))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    for mine, theirs in zip(two["parameters"], one["parameters"], strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-5)


def test_end_to_end_shuffles_what_bn_sees_and_nothing_else():
    torch.manual_seed(0)
    shuffled = EndToEnd(small_encoder(), dim=8)
    plain = copy.deepcopy(shuffled)
    plain.shuffle = False
    assert shuffled(*batch(0)).loss.item() == pytest.approx(plain(*batch(0)).loss.item(), abs=1e-6)
    grouped = EndToEnd(bn_encoder(), dim=8, bn_group=4)
    straight = copy.deepcopy(grouped)
    straight.shuffle = False
    assert grouped(*batch(0)).loss.item() != pytest.approx(straight(*batch(0)).loss.item(), abs=1e-6)


def test_end_to_end_symmetric_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    both = EndToEnd(small_encoder(), dim=8, symmetric=True)
    one = copy.deepcopy(both)
    one.symmetric = False
    view1, view2 = batch(0)
    expected = (one(view1, view2).loss + one(view2, view1).loss) / 2
    assert both(view1, view2).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_end_to_end_has_no_parts():
    with pytest.raises(ValueError, match="cannot be taken in parts"):
        next(EndToEnd(small_encoder(), dim=8).parts(*batch(0), count=2))


def test_memory_bank_is_its_definition():
    """10 steps over 30 images: K drawn vectors without gradient, the image's own left out; then its vector moves."""
    torch.manual_seed(0)
    mechanism = MemoryBank(small_encoder(), 30, dim=16, draws=20, momentum=0.7, temperature=0.5)
    query, bank = copy.deepcopy(mechanism.query), list(mechanism.vectors.clone())
    ours, literal = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (mechanism, query))
    left_out = 0
    for step in range(10):
        view, _ = batch(step)
        images = torch.randperm(30)[: len(view)]
        drawn = (random_bits(20, torch.tensor(step)) % 30).tolist()
        result = mechanism(view, images)
        ours.zero_grad()
        result.loss.backward()
        ours.step()
        q = normalize(query(view), dim=1)
        rows = []
        for row, image in zip(q, images.tolist(), strict=True):
            left_out += drawn.count(image)
            rows.append([row @ bank[image] / 0.5, *(row @ bank[j] / 0.5 for j in drawn if j != image)])
        loss = softmax_loss(rows)
        literal.zero_grad()
        loss.backward()
        literal.step()
        for row, image in zip(q.detach(), images.tolist(), strict=True):
            bank[image] = normalize(0.7 * bank[image] + 0.3 * row, dim=0)
        assert result.loss.item() == pytest.approx(loss.item(), abs=1e-5)
        assert torch.allclose(mechanism.vectors, torch.stack(bank), rtol=0, atol=1e-5)
    assert left_out > 0
    for mine, theirs in zip(mechanism.parameters(), query.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-5)


def test_memory_bank_in_parts_is_the_whole():
    torch.manual_seed(0)
    whole = MemoryBank(bn_encoder(), 40, dim=8, draws=10, bn_group=4)
    parted = copy.deepcopy(whole)
    view, images = batch(0, n=16)[0], torch.arange(16)
    whole(view, images).loss.backward()
    for result in parted.parts(view, images, 2):
        (result.loss / 2).backward()
    for p, q in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(whole.vectors, parted.vectors, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: EndToEnd(bn_encoder(), dim=8), lambda: MemoryBank(bn_encoder(), 20, dim=8)])
def test_the_state_dict_is_the_whole_state_and_evaluation_changes_none(make):
    torch.manual_seed(0)
    one, two = make(), make()
    view1, view2 = batch(0)
    inputs = (view1, torch.arange(12)) if isinstance(one, MemoryBank) else (view1, view2)
    one(*inputs)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(*inputs).loss, two(*inputs).loss)
    before = copy.deepcopy(one.state_dict())
    one.eval()(*inputs)
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: EndToEnd(nn.Linear(4, 4), temperature=0),
        lambda: EndToEnd(nn.Linear(4, 4), bn_group=1),
        lambda: MemoryBank(nn.Linear(4, 4), 1),
        lambda: MemoryBank(nn.Linear(4, 4), 10, draws=0),
        lambda: MemoryBank(nn.Linear(4, 4), 10, momentum=1.5),
    ],
)
def test_numbers_out_of_range(make):
    with pytest.raises(ValueError, match=r"is above 0|at least|is in 0\.\.1"):
        make()
