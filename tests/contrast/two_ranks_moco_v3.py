"""Run by test_moco_v3.py under torchrun: 6 steps of MoCo v3 on 64 images, shared by the ranks."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from moco.contrast import MoCoV3, group_batch_norm
from moco.contrast.collectives import average, gather, local


def encoder() -> nn.Module:
    bn = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    bn.num_features = 32
    return bn


def refused() -> str:
    try:
        MoCoV3(group_batch_norm(encoder(), 4))
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    mechanism = MoCoV3(encoder(), dim=16, temperature=0.2, total_steps=6, hidden=32, projector_layers=3)
    optimizer = torch.optim.SGD([p for p in mechanism.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for step in range(6):
        # Another mean for each half of the batch: its own statistics would not do.
        images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        images += torch.arange(64).view(-1, 1, 1, 1) / 16
        view1, view2 = local(images), local(images.flip(3) * 0.9)
        loss = mechanism(view1, view2).loss
        optimizer.zero_grad()
        loss.backward()
        average([p.grad for p in mechanism.parameters() if p.grad is not None])
        optimizer.step()
        mean = loss.detach().clone()
        average([mean])
        losses.append(mean.item())
    state = mechanism.state_dict()
    flat = torch.cat([value.flatten().float() for value in state.values()])
    same = bool((gather(flat[None]) == flat).all())
    if dist.get_rank() == 0:
        saved = {"losses": losses, "state": state, "same_on_all_ranks": same, "refused": refused()}
        torch.save(saved, folder / f"moco-v3-{dist.get_world_size()}.pt")
    dist.barrier()  # none leaves while another still works
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
