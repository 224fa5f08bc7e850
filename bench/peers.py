"""MoCo on CIFAR-10 as lightly's benchmark and the released code's Colab notebook have it, until the time is up.

    python -m bench.peers lightly|colab --data npz:PATH --out FOLDER [--minutes 4] [--batch 128] ...

A side of `python -m bench.minutes`, which starts it. Encoder and images are the caller's, all else is the peer's own:
loss, head, views, loader, learning rate. The cosine is a function of the time since the process was started, so that it
ends when the time does. Encoders go into FOLDER/checkpoints as the run proceeds, the first before the first step.
"""

import argparse
import copy
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms as T

from bench.data import Pictures, Twice, loader_of
from bench.steps import LightlyMoCo
from moco.data import open_source
from moco.encoders import Normalisation, build_encoder
from moco.encoders.weights import save_encoder
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.views.recipes import IMAGENET

STARTED = "MOCO_BENCH_STARTED"
"""The environment's variable with the time.time() at which the process was started."""
M, TAU, SPLITS = 0.99, 0.1, 8
"""Of both: the key encoder's momentum, the temperature, the groups that a batch is divided into for BN."""
LR, SGD_MOMENTUM, WEIGHT_DECAY = 0.06, 0.9, 5e-4


class SplitBatchNorm(nn.BatchNorm2d):
    """BN over each of 8 groups of the batch, as both peers write it: the groups' channels stand beside each other."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        n, channels, height, width = images.shape
        mean, var = self.running_mean.repeat(SPLITS), self.running_var.repeat(SPLITS)
        grouped = images.reshape(n // SPLITS, channels * SPLITS, height, width)
        weight, bias = self.weight.repeat(SPLITS), self.bias.repeat(SPLITS)
        out = F.batch_norm(grouped, mean, var, weight, bias, True, self.momentum, self.eps)
        self.running_mean.copy_(mean.view(SPLITS, channels).mean(dim=0))
        self.running_var.copy_(var.view(SPLITS, channels).mean(dim=0))
        return out.view(n, channels, height, width)


def split_batch_norm(module: nn.Module) -> nn.Module:
    """The same with every BN layer split; names, shapes and values of the weights stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            split = SplitBatchNorm(child.num_features)
            split.load_state_dict(child.state_dict())
            setattr(module, name, split)
        else:
            split_batch_norm(child)
    return module


class Lightly(nn.Module):
    """The benchmark's MocoModel: a symmetric loss, each view's keys encoded in another order."""

    def __init__(self, encoder: nn.Module, features: int, queue: int) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss

        self.model = LightlyMoCo(encoder, features)
        self.criterion = NTXentLoss(temperature=TAU, memory_bank_size=(queue, 128))

    def forward(self, view1: Tensor, view2: Tensor) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.model.backbone, self.model.backbone_momentum, m=M)
        update_momentum(self.model.head, self.model.head_momentum, m=M)
        return 0.5 * (self._loss(view1, view2) + self._loss(view2, view1))

    def _loss(self, query: Tensor, key: Tensor) -> Tensor:
        from lightly.models.utils import batch_shuffle, batch_unshuffle

        shuffled, order = batch_shuffle(key)
        keys = batch_unshuffle(self.model.forward_momentum(shuffled), order)
        return self.criterion(self.model(query), keys)


class Colab(nn.Module):
    """The notebook's ModelMoCo with its symmetric option: a linear head, and the loss is the sum of both.

    The queue must be a multiple of the keys of a step, two of each image, as in the notebook.
    """

    queue: Tensor

    def __init__(self, encoder: nn.Module, features: int, queue: int) -> None:
        super().__init__()
        self.query = nn.Sequential(encoder, nn.Linear(features, 128))
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(128, queue), dim=0))
        self.pointer = 0

    def forward(self, view1: Tensor, view2: Tensor) -> Tensor:
        with torch.no_grad():
            for query, key in zip(self.query.parameters(), self.key.parameters(), strict=True):
                key.data = key.data * M + query.data * (1 - M)
        loss12, keys2 = self._loss(view1, view2)
        loss21, keys1 = self._loss(view2, view1)
        keys = torch.cat([keys1, keys2])
        self.queue[:, self.pointer : self.pointer + len(keys)] = keys.T
        self.pointer = (self.pointer + len(keys)) % self.queue.shape[1]
        return loss12 + loss21

    def _loss(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        q = F.normalize(self.query(query), dim=1)
        with torch.no_grad():
            order = torch.randperm(len(key), device=key.device)
            k = F.normalize(self.key(key[order]), dim=1)[order.argsort()]
        positive = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1) / TAU
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)), k


COLAB: Normalisation = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def colab_views() -> Twice:
    """The notebook's transform, twice."""
    steps = [
        T.RandomResizedCrop(32),
        T.RandomHorizontalFlip(p=0.5),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.ToTensor(),
        T.Normalize(*COLAB),
    ]
    return Twice(T.Compose(steps))


def lightly_views() -> Callable[..., list[Tensor]]:
    """The benchmark's: SimCLR's at half strength, without blur."""
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)


@dataclass(frozen=True)
class Peer:
    """What is a peer's own.

    Attributes:
        lr_batch: the batch whose learning rate is LR; of others it grows linearly.
        queue: K at a batch.
        normalisation: of its images, in training and in evaluation.
    """

    model: Callable[[nn.Module, int, int], nn.Module]
    views: Callable[[], Callable[..., list[Tensor]]]
    lr_batch: int
    queue: Callable[[int], int]
    normalisation: Normalisation


PEERS = {
    # The benchmark's table doubles the memory bank at batch 512.
    "lightly": Peer(Lightly, lightly_views, 128, lambda batch: 8192 if batch >= 512 else 4096, IMAGENET),
    "colab": Peer(Colab, colab_views, 512, lambda batch: 4096, COLAB),
}


def cosine(lr: float, elapsed: float, seconds: float) -> float:
    """From lr to 0 over the seconds."""
    return lr * 0.5 * (1 + math.cos(math.pi * min(1.0, elapsed / seconds)))


def train(
    step: Callable[[Any, float], None],
    batches: Iterator[Any],
    save: Callable[[int], None],
    seconds: float,
    points: int,
    clock: Callable[[], float],
) -> int:
    """Takes steps until one more would not end in time; returns how many.

    Args:
        step: of a batch, and the share of the learning rate that the time leaves.
        save: the state after so many steps: before the first, `points` times on the way, after the last.
        clock: seconds since the process was started.
    """
    save(0)
    before, due = clock(), 1
    for made, batch in enumerate(batches, 1):
        step(batch, cosine(1.0, before, seconds))
        now = clock()
        last = now + (now - before) > seconds
        if last or now >= due * seconds / points:
            save(made)
            due = math.floor(now * points / seconds) + 1
        if last:
            return made
        before = now
    raise AssertionError("the batches have no end")


def main(arguments: list[str] | None = None, clock: Callable[[], float] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--small-stem", action="store_true")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    started = float(os.environ.get(STARTED, time.time()))
    try:
        steps = _run(options, clock or (lambda: time.time() - started))
    except UserError as error:
        sys.exit(f"bench.peers: {error}")
    print(f"{steps} steps")


def _run(options: argparse.Namespace, clock: Callable[[], float]) -> int:
    peer, device = PEERS[options.peer], choose_device().device
    source = open_source(options.data)
    images = (source.first_of_each_class(options.per_class) if options.per_class else source).train.images
    if options.batch % SPLITS or not SPLITS < options.batch <= len(images):
        raise UserError(f"--batch {options.batch}: is not a multiple of {SPLITS}, or more than {len(images)} images")
    if options.peer == "colab" and peer.queue(options.batch) % (2 * options.batch):
        raise UserError(f"--batch {options.batch}: the queue of {peer.queue(options.batch)} is no multiple of its keys")
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    encoder = split_batch_norm(build_encoder(options.encoder, options.small_stem))
    model = peer.model(encoder, int(encoder.num_features), peer.queue(options.batch)).to(device)
    lr = LR * options.batch / peer.lr_batch
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    pictures = Pictures(images.permute(0, 2, 3, 1).contiguous().numpy(), peer.views())
    loader = loader_of(pictures, options.batch, options.workers)
    folder = options.out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)

    def step(batch: Any, share: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        (view1, view2), _ = batch
        optimizer.zero_grad()
        model(view1.to(device), view2.to(device)).backward()
        optimizer.step()

    def save(made: int) -> None:
        save_encoder(encoder, folder / f"step-{made:09d}.safetensors")

    return train(step, _endless(loader), save, 60 * options.minutes, options.points, clock)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


if __name__ == "__main__":
    main()
