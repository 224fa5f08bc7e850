"""Run by test_mechanism.py under torchrun: 8 steps on a global batch of 64, shared by the ranks."""

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from moco.contrast import MoCo
from moco.contrast.collectives import average, gather, local
from moco.views import Views

sys.path.insert(0, str(Path(__file__).parent))
from algorithm1 import Algorithm1

STEPS, BATCH = 8, 64


def encoder(kind: str) -> nn.Module:
    if kind == "plain":
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 20))
    bn = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    bn.num_features = 32
    return bn


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    images = torch.randint(0, 256, (200, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = Views("cifar", 8, seed=0)
    for kind in ("plain", "bn"):
        torch.manual_seed(0)
        # 150 keys: not a multiple of the batch. 32 is each rank's whole batch when there are two.
        moco = MoCo(encoder(kind), dim=16, queue_size=150, momentum=0.9, temperature=0.2, bn_group=32)
        literal = Algorithm1(copy.deepcopy(moco.query), moco.queue.keys, momentum=0.9, temperature=0.2, lr=0.1)
        optimizer = torch.optim.SGD(moco.query.parameters(), lr=0.1)
        losses, literal_losses, seen = [], [], []
        for step in range(STEPS):
            index = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[:BATCH]
            view1, view2 = views(images[local(index)], local(index), epoch=step)
            seen.append(gather(view1))
            loss = moco(view1, view2).loss
            optimizer.zero_grad()
            loss.backward()
            average([p.grad for p in moco.query.parameters()])
            optimizer.step()
            mean = loss.detach().clone()
            average([mean])
            losses.append(mean.item())
            if kind == "plain":
                literal_losses.append(literal.step(*views(images[index], index, epoch=step))[1])
        if dist.get_rank() == 0:
            state = {"losses": losses, "queue": moco.queue.keys, "enqueued": int(moco.queue.enqueued)}
            state |= {"views": torch.stack(seen), "key": list(moco.key.state_dict().values())[:2]}
            torch.save(state, folder / f"{kind}-{ranks}.pt")
            if kind == "plain":
                queue, pointer = torch.stack(literal.queue), literal.pointer
                torch.save({"losses": literal_losses, "queue": queue, "pointer": pointer}, folder / "literal.pt")
    dist.barrier()  # none leaves while another still works
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
