"""Each side steps in the precision and memory format of its column."""

import pytest
import torch
from torch import Tensor, nn

from bench import steps
from bench.steps import floor_step, large_step, operations, our_large_step, plain_large_step

LARGE = {"encoder": "tiny", "size": 32, "batch": 4, "queue": 64}


@pytest.fixture
def seen(monkeypatch):
    """What an encoder is called with: whether bf16 is on, and the memory format."""
    calls = []

    class Seen(nn.Module):
        num_features = 8

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, images: Tensor) -> Tensor:
            features = self.conv(images)
            channels_last = images.is_contiguous(memory_format=torch.channels_last)
            calls.append((features.dtype, channels_last))
            return features.mean(dim=(2, 3))

    monkeypatch.setattr(steps, "build_encoder", lambda *_, **__: Seen())
    monkeypatch.setattr("moco.training.build.build_encoder", lambda *_, **__: Seen())
    return calls


@pytest.mark.parametrize("make", [our_large_step, plain_large_step])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_in_equal_precision_both_compute_in_it_channels_last(seen, make, precision, dtype):
    assert make(**LARGE, precision=precision).work() == 4
    assert seen == [(dtype, True)] * 2


def test_by_default_the_peer_is_as_it_was_published(seen):
    plain_large_step(**LARGE).work()
    assert seen == [(torch.float32, False)] * 2


@pytest.mark.parametrize("bf16", [True, False])
def test_bf16_is_a_column_where_the_cpu_has_it(monkeypatch, bf16):
    monkeypatch.setattr(steps, "_has_bf16", lambda: bf16)
    work = large_step(**LARGE)
    assert [pair.column for pair in work.equal] == ["float32", "bf16"][: 1 + bf16]
    assert [pair.ours.name for pair in work.equal] == ["moco, float32", "moco, bf16"][: 1 + bf16]
    for pair in work.equal:
        assert pair.ours.make.keywords["precision"] == pair.peer.make.keywords["precision"]


def test_the_floor_is_made_of_all_convolutions_products_and_bn(monkeypatch):
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    view = torch.randn(2, 3, 8, 8)
    found = operations(encoder, view)
    assert [module for module, _ in found] == [encoder[0], encoder[1], encoder[4]]
    assert torch.equal(found[0][1], view)
    assert torch.equal(found[1][1], encoder[0](view))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_floor_computes_in_the_precision_of_a_step(monkeypatch, precision):
    done = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda out, own, given: done.append(out.dtype) or grad(out, own, given))
    assert floor_step(**LARGE, steps=2, precision=precision).work() == 8
    wide = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    assert {wide[dtype] for dtype in done} == {precision}
    assert len(done) > 10
