import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from moco.contrast import MoCo


def small_encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 20))


def batch(step: int, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(n, 3, 4, 4, generator=generator)
    return images, images + 0.3 * torch.randn(n, 3, 4, 4, generator=generator)


def test_the_symmetric_loss_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    both = MoCo(small_encoder(), dim=8, queue_size=40, symmetric=True)
    one = copy.deepcopy(both)
    one.symmetric = False
    view1, view2 = batch(0)
    other = copy.deepcopy(one)
    result, forth, back = both(view1, view2), one(view1, view2), other(view2, view1)
    assert result.loss.item() == pytest.approx((forth.loss + back.loss).item() / 2, abs=1e-6)
    # Both directions are contrasted with the queue as it was; then the keys of both views go in.
    assert torch.equal(both.queue.keys[:12], one.queue.keys[:12])
    assert torch.equal(both.queue.keys[12:24], other.queue.keys[:12])


def in_chunks(mechanism: nn.Module, chunks: int, *inputs: torch.Tensor) -> torch.Tensor:
    """Accumulates the gradient of a step. Returns the mean loss of the chunks."""
    losses = []

    def backward(forward):
        losses.append(forward().loss)
        (losses[-1] / chunks).backward()

    mechanism.accumulate(*inputs, chunks=chunks, backward=backward)
    assert len(losses) == chunks
    return torch.stack(losses).mean().detach()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_gradient_accumulation_is_the_whole_step(chunks, symmetric):
    torch.manual_seed(0)
    whole = MoCo(bn_encoder(), dim=8, queue_size=40, bn_group=4, symmetric=symmetric).double()
    parted = copy.deepcopy(whole)
    view1, view2 = (view.double() for view in batch(0, n=16))
    result = whole(view1, view2)
    result.loss.backward()
    assert in_chunks(parted, chunks, view1, view2).item() == pytest.approx(result.loss.item(), abs=1e-12)
    for p, q in zip(whole.query.parameters(), parted.query.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.queue.keys, parted.queue.keys, rtol=0, atol=1e-12)
    assert int(parted.queue.enqueued) == parted.queue.total == 16 * (1 + symmetric)  # once


@pytest.mark.parametrize("chunks", [4, 0])
def test_a_batch_that_does_not_divide(chunks):
    moco = MoCo(small_encoder(), dim=8, queue_size=40)
    before = copy.deepcopy(moco.state_dict())
    with pytest.raises(ValueError, match=f"a batch of 6 does not divide into {chunks} gradient-accumulation steps"):
        moco.accumulate(*batch(0, n=6), chunks=chunks, backward=lambda forward: None)
    assert all(torch.equal(before[name], value) for name, value in moco.state_dict().items())


def test_every_parameter_and_number_is_float64_after_double():
    moco = MoCo(bn_encoder(), dim=8, queue_size=40, bn_group=4, head="mlp").double()
    result = moco(*(view.double() for view in batch(0)))
    assert result.loss.dtype == moco.queue.keys.dtype == moco.encode_keys(batch(0)[0].double()).dtype == torch.float64


def test_keys_of_a_past_step_are_encoded_in_its_order():
    """`enqueued` names the step by the number of keys that the queue had then."""
    torch.manual_seed(0)
    moco = MoCo(bn_encoder(), dim=8, queue_size=40, bn_group=4)
    view = batch(0)[0]
    first = moco.encode_keys(view)
    moco.queue.enqueue(first)
    assert not torch.allclose(moco.encode_keys(view), first, atol=1e-4)
    assert torch.equal(moco.encode_keys(view, enqueued=0), first)
    assert not torch.allclose(moco.encode_keys(view, stream=1, enqueued=0), first, atol=1e-4)


def test_keys_are_those_of_their_images():
    """Row i is the key of image i, whatever the order in which they were encoded."""
    moco = MoCo(small_encoder(), dim=8, queue_size=40)
    view = batch(0)[0]
    expected = torch.nn.functional.normalize(moco.key(view), dim=1)
    torch.testing.assert_close(moco.encode_keys(view), expected)
    torch.testing.assert_close(moco.encode_keys(view, chunks=3), expected)
    assert not moco.encode_keys(view.requires_grad_()).requires_grad


def bn_encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_evaluation_changes_nothing():
    moco = MoCo(bn_encoder(), dim=8, queue_size=40).eval()
    nn.init.normal_(moco.query.head.weight)  # else the momentum update would change nothing either
    before = copy.deepcopy(moco.state_dict())
    moco(*batch(0))
    assert all(torch.equal(before[name], value) for name, value in moco.state_dict().items())


def test_evaluation_shuffles_nothing():
    moco = MoCo(bn_encoder(), dim=8, queue_size=40).eval()
    seen = []
    moco.key.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    view = batch(0)[0]
    moco.encode_keys(view)
    assert torch.equal(seen[0], view)


def test_the_state_dict_is_the_whole_state():
    torch.manual_seed(0)
    moco = MoCo(bn_encoder(), dim=8, queue_size=30, bn_group=4)
    moco(*batch(0))
    torch.manual_seed(1)
    copied = MoCo(bn_encoder(), dim=8, queue_size=30, bn_group=4)
    copied.load_state_dict(moco.state_dict())
    assert torch.equal(moco(*batch(1)).loss, copied(*batch(1)).loss)
    assert torch.equal(moco.queue.keys, copied.queue.keys)


def test_only_the_query_encoder_is_trained():
    moco = MoCo(bn_encoder(), dim=8, queue_size=30)
    moco(*batch(0)).loss.backward()
    assert all(p.grad is not None for p in moco.query.parameters())
    assert not any(p.requires_grad for p in moco.key.parameters())


def test_any_encoder_goes_in():
    signals = torch.randn(8, 2, 50)
    encoder = nn.Sequential(nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    assert MoCo(encoder, dim=4, queue_size=16, bn_group=4)(signals, signals).loss.isfinite()


class Silent(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def test_an_unknown_number_of_features():
    with pytest.raises(ValueError, match="pass num_features"):
        MoCo(Silent())
    assert MoCo(Silent(), num_features=48, queue_size=8)(*batch(0)).loss.isfinite()


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"queue_size": 0},
        {"momentum": 1.1},
        {"momentum": -0.1},
        {"temperature": 0.0},
        {"bn_group": 1},
        {"head": "x"},
    ],
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        MoCo(small_encoder(), **wrong)


def test_imports_torch_alone():
    """A room that anyone can take along."""
    code = "import sys, moco.contrast; print(sorted(m for m in sys.modules if m.startswith(('moco', 'torchvision'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name.startswith("moco.contrast") or name == "moco" for name in eval(done.stdout)), done.stdout


def test_keys_are_encoded_again_with_the_permutation_of_their_step():
    """By `enqueued`; BN statistics of groups show which permutation it was."""
    moco = MoCo(
        nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU()), dim=4, queue_size=32, bn_group=4, num_features=8
    )
    view = torch.randn(16, 3)
    before = moco.encode_keys(view)
    moco.queue.enqueue(before)
    assert torch.equal(moco.encode_keys(view, enqueued=0), before)
    now = moco.encode_keys(view)
    assert not torch.allclose(now, before)
    assert torch.equal(moco.encode_keys(view, enqueued=16), now)


def test_a_key_encoder_may_stand_still():
    MoCo(nn.Linear(3, 8), dim=4, queue_size=32, momentum=1.0)
