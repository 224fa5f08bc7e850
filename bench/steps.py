"""Whole steps: ours, lightly's modules, and the released code's written plainly."""

import copy
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.data import Pictures, lightly_v2, loader_of
from bench.material import Material
from bench.side_by_side import Pair, Side, Turn, Work
from moco.contrast import GroupBatchNorm
from moco.data import InMemory, Source, training_plan
from moco.encoders import build_encoder
from moco.runs.config import Compute, Config, Contrast, Encoder, Training
from moco.runs.config import Views as ViewsConfig
from moco.runs.folder import Run
from moco.runtime.convolution import ProductConv2d
from moco.runtime.device import choose_device
from moco.training import Pretraining
from moco.training.build import device_of

LR, SGD_MOMENTUM, WEIGHT_DECAY = 0.03, 0.9, 1e-4
COUNTED = (nn.Conv2d, nn.Linear, _BatchNorm, GroupBatchNorm)
"""What the floor of a step is made of."""
Precision = Literal["fp32", "bf16"]
"""Of both sides, in the columns of equal precision; None, or auto, is a side's default."""


def run_of(
    images: Tensor | Source,
    views: str,
    size: int,
    encoder: str,
    batch: int,
    queue: int,
    m: float,
    compute: Compute,
    bn_group: int | None = None,
) -> Pretraining:
    """Our run of these settings: v2's head, BN over the whole batch as the peers have it, by default."""
    config = Config(
        views=ViewsConfig(views, size),
        encoder=Encoder(encoder, small_stem=size <= 96),
        contrast=Contrast(queue_size=queue, key_momentum=m, head="mlp", bn_group=bn_group),
        training=Training(
            batch_size=batch, lr=LR, schedule="cosine", sgd_momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY
        ),
        compute=compute,
    )
    source = Source(InMemory(images), None, None) if isinstance(images, Tensor) else images
    # Nothing is written: the run's folder is only named.
    return Pretraining(config, source, Run(Path(tempfile.gettempdir()) / "bench"), device_of(compute))


def compute(precision: Precision | None) -> Compute:
    return Compute(device="cpu", precision=precision or "auto")


def memory_format(precision: Precision | None) -> torch.memory_format:
    """Of a peer: in equal precision channels last, as ours; else PyTorch's default."""
    return torch.contiguous_format if precision is None else torch.channels_last


def autocast(precision: Precision | None) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


# A step with its data.


def our_step(
    material: Material,
    encoder: str,
    size: int,
    batch: int,
    queue: int,
    steps: int,
    precision: Precision | None = None,
) -> Turn:
    images = torch.from_numpy(material.small(size)).permute(0, 3, 1, 2).contiguous()
    run = run_of(images, "cifar", size, encoder, batch, queue, 0.99, compute(precision))
    batches = run.loader.batches(training_plan(len(images), batch, 0, 0, 1 << 30))

    def work() -> int:
        for made in itertools.islice(batches, steps):
            run.update(*made.views)
        return steps * batch

    return Turn(work)


class LightlyMoCo(nn.Module):
    """lightly's modules put together as its documentation does."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.backbone, self.head = backbone, MoCoProjectionHead(features, features, 128)
        self.backbone_momentum, self.head_momentum = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)

    def forward(self, view: Tensor) -> Tensor:
        return self.head(self.backbone(view))

    def forward_momentum(self, view: Tensor) -> Tensor:
        return self.head_momentum(self.backbone_momentum(view)).detach()


def lightly_step(
    material: Material,
    encoder: str,
    size: int,
    batch: int,
    queue: int,
    steps: int,
    workers: int,
    precision: Precision | None = None,
) -> Turn:
    from lightly.loss import NTXentLoss
    from lightly.models.utils import update_momentum

    backbone = build_encoder(encoder, small_stem=True)
    layout = memory_format(precision)
    model = LightlyMoCo(backbone, int(backbone.num_features)).to(memory_format=layout)
    criterion = NTXentLoss(temperature=0.07, memory_bank_size=(queue, 128))
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    # A turn is an epoch of `steps` batches, so that no batch is made in another's turn.
    images = material.small(size)[: steps * batch]
    loader = loader_of(Pictures(images, lightly_v2(size, gaussian_blur=0.0)), batch, workers)

    def work() -> int:
        for (view1, view2), _ in loader:
            update_momentum(model.backbone, model.backbone_momentum, m=0.99)
            update_momentum(model.head, model.head_momentum, m=0.99)
            view1, view2 = view1.to(memory_format=layout), view2.to(memory_format=layout)
            with autocast(precision):
                loss = criterion(model(view1), model.forward_momentum(view2))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return len(loader) * batch

    return Turn(work)


# ResNet-50, the views made already.


def pairs(size: int, batch: int, layout: torch.memory_format) -> Iterator[tuple[Tensor, Tensor]]:
    """The same two views again and again."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, size, size)
    view1, view2 = (torch.randn(shape, generator=generator).to(memory_format=layout) for _ in range(2))
    return itertools.repeat((view1, view2))


def our_large_step(encoder: str, size: int, batch: int, queue: int, precision: Precision | None = None) -> Turn:
    images = torch.zeros(batch, 3, 8, 8, dtype=torch.uint8)
    run = run_of(images, "v2", size, encoder, batch, queue, 0.999, compute(precision))
    made = pairs(size, batch, run.device.memory_format)

    def work() -> int:
        run.update(*next(made))
        return batch

    return Turn(work)


class PlainMoCo(nn.Module):
    """Algorithm 1 as one writes it first: what the released code does on one device."""

    queue: Tensor

    def __init__(self, encoder: nn.Module, features: int, queue: int, m: float, tau: float) -> None:
        super().__init__()
        self.m, self.tau, self.pointer = m, tau, 0
        head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 128))
        self.query = nn.Sequential(encoder, head)
        self.key = copy.deepcopy(self.query)
        for parameter in self.key.parameters():
            parameter.requires_grad = False
        self.register_buffer("queue", F.normalize(torch.randn(128, queue), dim=0))

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        q = F.normalize(self.query(view1), dim=1)
        with torch.no_grad():
            for query, key in zip(self.query.parameters(), self.key.parameters(), strict=True):
                key.data = key.data * self.m + query.data * (1 - self.m)
            k = F.normalize(self.key(view2), dim=1)
        positive = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1) / self.tau
        self.queue[:, self.pointer : self.pointer + len(k)] = k.T
        self.pointer = (self.pointer + len(k)) % self.queue.shape[1]
        return logits, torch.zeros(len(logits), dtype=torch.long)


def plain_large_step(encoder: str, size: int, batch: int, queue: int, precision: Precision | None = None) -> Turn:
    backbone = build_encoder(encoder, small_stem=size <= 96)
    model = PlainMoCo(backbone, int(backbone.num_features), queue, 0.999, 0.07)
    model = model.to(memory_format=memory_format(precision))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    made = pairs(size, batch, memory_format(precision))

    def work() -> int:
        with autocast(precision):
            logits, labels = model(*next(made))
            loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return batch

    return Turn(work)


# What a step takes at least.


def floor_step(
    encoder: str, size: int, batch: int, queue: int, steps: int = 1, precision: Precision | None = None
) -> Turn:
    """Forward and backward of each such operation of the query encoder, and forward of the key encoder's, one by one on
    the inputs that they have in a step: in our precision and memory format."""
    images = torch.zeros(batch, 3, 8, 8, dtype=torch.uint8)
    run = run_of(images, "cifar" if size <= 96 else "v2", size, encoder, batch, queue, 0.99, compute(precision))
    for module in run.mechanism.modules():
        if isinstance(module, ProductConv2d):
            module.__class__ = nn.Conv2d  # as PyTorch runs it
    view = torch.randn(batch, 3, size, size).to(memory_format=run.device.memory_format)
    with run.device.autocast():
        query, key = operations(run.mechanism.query, view), operations(run.mechanism.key, view)
        gradients = [torch.ones_like(module(given)) for module, given in query]
    for _, given in query[1:]:  # nothing asks for the gradient of the images
        given.requires_grad_()
    wanted = [[*module.parameters(), *([given] if given.requires_grad else [])] for module, given in query]

    def work() -> int:
        for _ in range(steps):
            with run.device.autocast():
                for (module, given), gradient, own in zip(query, gradients, wanted, strict=True):
                    torch.autograd.grad(module(given), own, gradient)
                with torch.no_grad():
                    for module, given in key:
                        module(given)
        return steps * batch

    return Turn(work)


def operations(encoder: nn.Module, view: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """The operations that are counted, with their inputs, in the order of a forward pass."""
    found: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        found.append((module, given[0].detach().clone()))

    hooks = [part.register_forward_pre_hook(note) for part in encoder.modules() if isinstance(part, COUNTED)]
    with torch.no_grad():
        encoder(view)
    for hook in hooks:
        hook.remove()
    return found


# The works.


def _has_bf16() -> bool:
    return choose_device(name="cpu").bf16


def _precision() -> str:
    return "bf16 autocast" if _has_bf16() else "float32"


def _equal(ours: Side, peer: Side) -> tuple[Pair, ...]:
    """Both sides in float32, and in bf16 where the CPU has it; both channels last."""

    def pair(column: str, precision: Precision) -> Pair:
        def side(by_default: Side) -> Side:
            make = partial(by_default.make, precision=precision)
            return replace(by_default, name=f"{by_default.name}, {column}", make=make)

        return Pair(column, side(ours), side(peer))

    return (pair("float32", "fp32"), *([pair("bf16", "bf16")] if _has_bf16() else []))


def small_step(
    material: Material,
    encoder: str = "resnet18",
    size: int = 32,
    batch: int = 128,
    queue: int = 4096,
    steps: int = 2,
    cores: int = 2,
) -> Work:
    options: dict[str, Any] = {"encoder": encoder, "size": size, "batch": batch, "queue": queue, "steps": steps}
    ours = Side("moco", partial(our_step, material, **options), f"an updated encoder, {_precision()}")
    theirs = partial(lightly_step, material, **options, workers=cores)
    peer = Side(f"lightly, {cores} workers", theirs, "an updated encoder, float32", needs="lightly")
    title = f"step with data, {encoder}, {size} px, batch {batch}, K {queue}, {cores} core{'s' if cores > 1 else ''}"
    least = Side("the floor", partial(floor_step, **options), "convolutions, products and BN alone")
    equal, share = _equal(ours, peer), 0.75 if encoder == "tiny" else 0.85
    return Work(f"step-{encoder}", title, ours, (peer,), cores=cores, equal=equal, floor=least, share=share)


def large_step(encoder: str = "resnet50", size: int = 224, batch: int = 16, queue: int = 65536) -> Work:
    options: dict[str, Any] = {"encoder": encoder, "size": size, "batch": batch, "queue": queue}
    ours = Side("moco", partial(our_large_step, **options), f"an updated encoder, {_precision()}, channels last")
    peer = Side("the released code's, plainly", partial(plain_large_step, **options), "an updated encoder, float32")
    title = f"step, {encoder}, {size} px, batch {batch}, K {queue}, views made already"
    least = Side("the floor", partial(floor_step, **options), "convolutions, products and BN alone")
    return Work("step-224", title, ours, (peer,), equal=_equal(ours, peer), floor=least, share=0.85)
