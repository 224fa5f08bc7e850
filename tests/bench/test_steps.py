"""Each side steps in the precision and memory format of its column."""

import pytest
import torch
from torch import Tensor, nn

from bench import steps
from bench.steps import large_step, our_large_step, plain_large_step

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
