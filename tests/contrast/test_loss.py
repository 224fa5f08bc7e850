import math

import pytest
import torch
import torch.nn.functional as F

from moco.contrast import info_nce


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=1)


def test_info_nce_is_cross_entropy_with_the_positive_at_0():
    q, k, negatives = unit(10, 8).requires_grad_(), unit(10, 8), unit(33, 8)
    result = info_nce(q, k, negatives, 0.07)
    logits = torch.cat(((q * k).sum(1, keepdim=True), q @ negatives.T), dim=1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(10, dtype=torch.int64))
    assert result.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    (mine,) = torch.autograd.grad(result.loss, q)
    (theirs,) = torch.autograd.grad(expected, q)
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_info_nce_of_knowing_nothing_is_log_of_k_plus_1():
    same = F.normalize(torch.ones(5, 8), dim=1)
    assert info_nce(same, same, same[:1].expand(99, 8), 0.07).loss.item() == pytest.approx(math.log(100), abs=1e-5)


def test_info_nce_is_float32_under_autocast():
    q, k, negatives = (unit(16, 32).bfloat16() for _ in range(3))
    plain = info_nce(q, k, negatives, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        cast = info_nce(q, k, negatives, 0.07)
    assert cast.loss.dtype == torch.float32
    assert torch.equal(plain.loss, cast.loss)


def test_accuracy_counts_the_positives_that_win():
    q = torch.eye(4)
    k = torch.eye(4)[[0, 1, 3, 3]]  # the third query's key is another's
    negatives = 0.5 * torch.eye(4)
    assert info_nce(q, k, negatives, 1.0).accuracy.item() == 0.75
