import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moco.contrast import MoCo
from tests.launch import launch

sys.path.insert(0, str(Path(__file__).parent))
from algorithm1 import Algorithm1


def small_encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 20))


def batch(step: int, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(n, 3, 4, 4, generator=generator)
    return images, images + 0.3 * torch.randn(n, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("queue_size", [48, 50, 7])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_is_algorithm_1(queue_size, head):
    """20 steps in float32: logits, loss, queue, pointer and key parameters, all within 1e-5."""
    torch.manual_seed(0)
    moco = MoCo(small_encoder(), dim=16, queue_size=queue_size, momentum=0.9, temperature=0.5, head=head)
    literal = Algorithm1(copy.deepcopy(moco.query), moco.queue.keys, momentum=0.9, temperature=0.5, lr=0.03)
    optimizer = torch.optim.SGD(moco.query.parameters(), lr=0.03)
    for step in range(20):
        view1, view2 = batch(step)
        result = moco(view1, view2)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        logits, loss, key_parameters = literal.step(view1, view2)
        assert result.loss.item() == pytest.approx(loss, abs=1e-5)
        assert torch.allclose(torch.cat((result.positive[:, None], result.negatives), 1), logits, rtol=0, atol=1e-5)
        assert torch.allclose(moco.queue.keys, torch.stack(literal.queue), rtol=0, atol=1e-5)
        assert int(moco.queue.enqueued) % queue_size == literal.pointer
        for mine, theirs in zip(moco.key.parameters(), key_parameters, strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-5)
        assert result.accuracy.item() == (logits.argmax(dim=1) == 0).float().mean().item()


def run_ranks(ranks: int, script: str, folder: Path) -> None:
    """A script of this folder on so many gloo ranks."""
    launch(ranks, str(Path(__file__).parent / script), str(folder))


def test_two_ranks_are_algorithm_1_and_one_rank_with_groups(tmp_path):
    """Two ranks of 32 against Algorithm 1 on all 64 (an encoder without BN), and against one rank with BN groups of 32.

    The queue holds the keys in the order of the whole batch: rank 0's, then rank 1's.
    """
    run_ranks(2, "two_ranks.py", tmp_path)
    run_ranks(1, "two_ranks.py", tmp_path)
    for encoder in ("plain", "bn"):
        two, one = (torch.load(tmp_path / f"{encoder}-{ranks}.pt") for ranks in (2, 1))
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        for key in ("queue", "views"):
            assert torch.allclose(two[key], one[key], rtol=0, atol=1e-5), key
        assert two["enqueued"] == one["enqueued"]
        for mine, theirs in zip(two["key"], one["key"], strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-5)
    literal = torch.load(tmp_path / "literal.pt")
    two = torch.load(tmp_path / "plain-2.pt")
    assert two["losses"] == pytest.approx(literal["losses"], abs=1e-5)
    assert torch.allclose(two["queue"], literal["queue"], rtol=0, atol=1e-5)
    assert two["enqueued"] % len(two["queue"]) == literal["pointer"]


def test_the_symmetric_loss_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    both = MoCo(small_encoder(), dim=8, queue_size=40, symmetric=True)
    one = copy.deepcopy(both)
    one.symmetric = False
    view1, view2 = batch(0)
    other = copy.deepcopy(one)
    result, forth, back = both(view1, view2), one(view1, view2), other(view2, view1)
    assert result.loss.item() == pytest.approx((forth.loss + back.loss).item() / 2, abs=1e-6)
    # Both directions look up the queue as it was; then the keys of both views go in.
    assert torch.equal(both.queue.keys[:12], one.queue.keys[:12])
    assert torch.equal(both.queue.keys[12:24], other.queue.keys[:12])


def test_parts_give_the_gradient_and_the_queue_of_the_whole_batch():
    torch.manual_seed(0)
    whole = MoCo(bn_encoder(), dim=8, queue_size=40, bn_group=4)
    parted = copy.deepcopy(whole)
    view1, view2 = batch(0, n=16)
    whole(view1, view2).loss.backward()
    for result in parted.parts(view1, view2, 2):
        (result.loss / 2).backward()
    for p, q in zip(whole.query.parameters(), parted.query.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(whole.queue.keys, parted.queue.keys, atol=1e-6)


def bn_encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_evaluation_changes_nothing():
    moco = MoCo(bn_encoder(), dim=8, queue_size=40).eval()
    before = copy.deepcopy(moco.state_dict())
    moco(*batch(0))
    assert all(torch.equal(before[name], value) for name, value in moco.state_dict().items())


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


def test_features_that_cannot_be_told():
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
