"""Momentum contrast of signals in time: the mechanism needs two views and an encoder, not images.

    python examples/signals.py               # 25 s on a CPU

Four kinds of waves, each of random pitch, phase and noise. A view is a piece of the signal, scaled, with other noise
and a gap; the encoder is a small convolutional network in time. It prints the kNN accuracy before and after: 85.4 %
and 100.0 % (2026-11-24; the size of the Fourier transform alone has 95.3 %, the samples as they are 45.9 %).
"""

import math

import torch
from torch import Tensor, nn

from moco import MoCo
from moco.evaluation import Features, knn_predict

LENGTH, PIECE = 256, 192


def waves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals float32 (count, 1, LENGTH), and their kinds, int64 (count,): sine, square, saw tooth, pulses."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(count) % 4
    pitch = torch.rand(count, 1, generator=generator) * 6 + 4
    phase = torch.rand(count, 1, generator=generator)
    turns = (torch.linspace(0, 1, LENGTH) * pitch + phase) % 1
    shapes = torch.stack(
        [
            torch.sin(2 * math.pi * turns),
            torch.where(turns < 0.5, 1.0, -1.0),
            2 * turns - 1,
            torch.where(turns < 0.12, 2.0, -0.27),
        ]
    )
    signals = shapes[kind, torch.arange(count)]
    return (signals + 0.5 * torch.randn(count, LENGTH, generator=generator))[:, None], kind


def view(signals: Tensor) -> Tensor:
    """A random piece of each signal, (n, 1, PIECE): scaled, sometimes upside down, noisy, with a gap."""
    n = len(signals)
    start = torch.randint(0, LENGTH - PIECE + 1, (n, 1))
    piece = signals[:, 0].gather(1, start + torch.arange(PIECE)) * (0.5 + torch.rand(n, 1))
    gap = torch.randint(0, PIECE - 24, (n, 1))
    place = torch.arange(PIECE)
    piece = torch.where((place >= gap) & (place < gap + 24), 0.0, piece)
    return (piece + 0.3 * torch.randn(n, PIECE))[:, None]


def encoder() -> nn.Module:
    """Signals (n, 1, any length) to features (n, 64)."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        convolution = nn.Conv1d(channels_in, channels_out, 9, stride=2, padding=4, bias=False)
        return [convolution, nn.BatchNorm1d(channels_out), nn.ReLU(inplace=True)]

    return nn.Sequential(*block(1, 32), *block(32, 64), *block(64, 64), nn.AdaptiveAvgPool1d(1), nn.Flatten())


@torch.no_grad()
def accuracy(encoder: nn.Module) -> float:
    """kNN accuracy on new signals, in 0..1."""
    encoder.eval()
    bank, test = (Features(encoder(signals), kinds) for signals, kinds in (waves(1000, 1), waves(1000, 2)))
    encoder.train()
    predicted = knn_predict(bank, test.values, 4, k=20, temperature=0.1, device=torch.device("cpu"))
    return (predicted == test.labels).double().mean().item()


def main(steps: int = 400) -> tuple[float, float]:
    """Trains; returns the accuracy before and after."""
    torch.manual_seed(0)
    backbone = encoder()
    moco = MoCo(backbone, 64, 1024, 0.99, 0.1, head="mlp", bn_group=32, num_features=64)
    optimizer = torch.optim.SGD(moco.query.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)
    signals, _ = waves(8192, 0)
    before = accuracy(backbone)
    for step in range(steps):
        batch = signals[torch.randint(0, len(signals), (128,))]
        loss, contrastive = moco(view(batch), view(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss:.2f}, contrastive accuracy {contrastive:.0%}")
    after = accuracy(backbone)
    print(f"kNN accuracy: {before:.1%} with random weights, {after:.1%} after {steps} steps (chance 25 %)")
    return before, after


if __name__ == "__main__":
    main()
