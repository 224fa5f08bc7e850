import math
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from moco.contrast import info_nce, loss


def unit(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=1)


def blocks_of(logits: int):
    return mock.patch.object(loss, "BLOCK", logits)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 5),
    k=st.integers(1, 17),
    block=st.integers(1, 90),
    tau=st.sampled_from([0.01, 0.07, 1.0]),
    kinds=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_in_any_blocks_loss_and_gradients_are_those_of_the_literal_definition(n, k, block, tau, kinds, seed):
    """K and batch of any size, some or all negatives of a query's own image (`kinds` of images; 0: not stated)."""
    torch.manual_seed(seed)
    q, positive, negatives = (unit(rows, 4, dtype=torch.float64).requires_grad_() for rows in (n, n, k))
    images = (torch.randint(kinds, (n,)), torch.randint(kinds, (k,))) if kinds else None
    with blocks_of(block):
        result = info_nce(q, positive, negatives, tau, images)
        mine = torch.autograd.grad(3 * result.loss, (q, positive, negatives))
    l_neg = q @ negatives.T
    if images:
        l_neg = l_neg.masked_fill(images[0][:, None] == images[1], -math.inf)
    logits = torch.cat(((q * positive).sum(1, keepdim=True), l_neg), dim=1) / tau
    expected = F.cross_entropy(logits, torch.zeros(n, dtype=torch.int64))
    theirs = torch.autograd.grad(3 * expected, (q, positive, negatives))
    torch.testing.assert_close([result.loss, *mine], [expected, *theirs], rtol=0, atol=1e-10 / tau)
    assert result.accuracy.item() == pytest.approx((logits.argmax(dim=1) == 0).double().mean().item())


def test_the_dictionary_may_change_before_backward():
    """As it does when keys are enqueued; one that requires a gradient is read again, and autograd notices."""
    q, positive, negatives = unit(6, 8).requires_grad_(), unit(6, 8), unit(20, 8)
    (expected,) = torch.autograd.grad(info_nce(q, positive, negatives, 0.07).loss, q)
    result = info_nce(q, positive, negatives, 0.07)
    negatives.zero_()
    assert torch.equal(torch.autograd.grad(result.loss, q)[0], expected)
    trained = unit(20, 8).requires_grad_()
    result = info_nce(q, positive, trained, 0.07)
    with torch.no_grad():
        trained.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss.backward()


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() // 4 == result.numel():  # no view
            self.elements = max(self.elements, result.numel())
        return result


def test_no_more_than_a_block_is_in_memory_and_nothing_of_k_is_kept():
    n, k, dim, kept = 16, 5000, 8, []
    q, positive, negatives = unit(n, dim).requires_grad_(), unit(n, dim), unit(k, dim)
    images = torch.arange(n), torch.arange(k)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x)
    with blocks_of(n * 100), Largest() as largest, hooks:
        info_nce(q, positive, negatives, 0.07, images).loss.backward()
    assert n * 100 <= largest.elements < k
    assert max(kept) <= n * dim


# Not ru_maxrss, which in a process begins at what the one that started it has.
STEP = """
import pathlib, torch
from moco.contrast import MoCo
moco = MoCo(torch.nn.Linear(64, 128), queue_size=2**20)
moco(*torch.randn(2, 256, 64)).loss.backward()
peak = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_million_keys_at_batch_256_take_under_3_gb():
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 3


def test_gradients_are_not_computed_where_none_is_wanted():
    q, positive, negatives = unit(6, 8).requires_grad_(), unit(6, 8), unit(20, 8)
    result = info_nce(q, positive, negatives, 0.07)
    with torch.no_grad():
        evaluated = info_nce(q, positive, negatives, 0.07)
    assert torch.equal(result.loss, evaluated.loss)
    assert torch.equal(result.accuracy, evaluated.accuracy)
    assert not evaluated.loss.requires_grad
    assert not result.accuracy.requires_grad


def test_there_is_no_second_derivative():
    q = unit(6, 8).requires_grad_()
    (first,) = torch.autograd.grad(info_nce(q, unit(6, 8), unit(20, 8), 0.07).loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_it_compiles_into_one_graph(trained):
    q, positive, negatives = unit(6, 8).requires_grad_(), unit(6, 8), unit(20, 8).requires_grad_(trained)
    images = torch.arange(6), torch.arange(20)
    inputs = (q, negatives) if trained else (q,)
    plain = info_nce(q, positive, negatives, 0.07, images)
    torch.compiler.reset()
    compiled = torch.compile(info_nce, fullgraph=True, backend="aot_eager")(q, positive, negatives, 0.07, images)
    torch.testing.assert_close(tuple(compiled), tuple(plain))
    gradients = (torch.autograd.grad(result.loss, inputs) for result in (compiled, plain))
    torch.testing.assert_close(*gradients)


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


@pytest.mark.parametrize("block", [4, 8, 100])
def test_accuracy_counts_the_positives_that_win(block):
    """The third query's key is another's; the fourth's is among the negatives too, in the last block: a tie is lost."""
    q = torch.eye(4)
    k = torch.eye(4)[[0, 1, 3, 3]]
    negatives = torch.cat((0.5 * torch.eye(4), torch.eye(4)[3:]))
    with blocks_of(block):
        assert info_nce(q, k, negatives, 1.0).accuracy.item() == 0.5
