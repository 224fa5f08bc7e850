"""Run by test_other_mechanisms.py under torchrun: 6 steps of end-to-end on 64 images, shared by the ranks."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from moco.contrast import EndToEnd
from moco.contrast.collectives import average, local


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    encoder.num_features = 32
    mechanism = EndToEnd(encoder, dim=16, temperature=0.2, bn_group=32)
    optimizer = torch.optim.SGD(mechanism.parameters(), lr=0.1)
    losses = []
    for step in range(6):
        images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        view1, view2 = local(images), local(images.flip(3) * 0.9)
        loss = mechanism(view1, view2).loss
        optimizer.zero_grad()
        loss.backward()
        average([p.grad for p in mechanism.parameters()])
        optimizer.step()
        mean = loss.detach().clone()
        average([mean])
        losses.append(mean.item())
    if dist.get_rank() == 0:
        state = {"losses": losses, "parameters": list(mechanism.parameters())}
        torch.save(state, folder / f"end-to-end-{dist.get_world_size()}.pt")
    dist.barrier()  # none leaves while another still works
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
