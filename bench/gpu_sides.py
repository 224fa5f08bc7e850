"""The steps that are measured on a GPU: ours, the released code's written plainly, lightly's."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.data import Pictures, lightly_v2, loader_of
from bench.material import prepare
from bench.steps import LR, SGD_MOMENTUM, WEIGHT_DECAY, LightlyMoCo, PlainMoCo, run_of
from moco.data import Source, open_source
from moco.data.formats.pack import pack
from moco.data.sources.shapes import draw
from moco.encoders import build_encoder
from moco.runs.config import Compute
from moco.training import Pretraining


class Sizes(NamedTuple):
    """Of the large step and the small one."""

    encoder: str
    size: int
    batch: int
    queue: int
    small_encoder: str
    small_size: int
    small_batch: int
    small_queue: int


@dataclass(frozen=True)
class Step:
    """One training step; it returns how many images it was of."""

    take: Callable[[], int]


def views_on(batch: int, size: int, device: torch.device, memory_format: torch.memory_format) -> list[Tensor]:
    shape = (batch, 3, size, size)
    return [torch.randn(shape, device=device).to(memory_format=memory_format) for _ in range(2)]


def _compute(device: torch.device, options: dict[str, Any]) -> Compute:
    return Compute(device=device.type, **options)


def ours(sizes: Sizes, device: torch.device, bn_group: int | None = None, **options: bool) -> Step:
    """Views on the device already."""
    images = torch.zeros(sizes.batch, 3, 8, 8, dtype=torch.uint8)
    compute = _compute(device, options)
    run = run_of(images, "v2", sizes.size, sizes.encoder, sizes.batch, sizes.queue, 0.999, compute, bn_group)
    views = views_on(sizes.batch, sizes.size, device, run.device.memory_format)

    def take() -> int:
        run.update(*views)
        run.pending.clear()
        return sizes.batch

    return Step(take)


def fed(run: Pretraining, batch: int) -> Step:
    batches = run.loader.training(batch, 0, 0, 1 << 30)

    def take() -> int:
        run.update(*run.inputs(next(batches)))
        run.pending.clear()
        return batch

    return Step(take)


def ours_with_views(sizes: Sizes, device: torch.device, **options: bool) -> Step:
    """Views of images in memory, made in the step."""
    images = _small_images(sizes)
    run = run_of(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        "cifar",
        sizes.small_size,
        sizes.small_encoder,
        sizes.small_batch,
        sizes.small_queue,
        0.99,
        _compute(device, options),
    )
    return fed(run, sizes.small_batch)


def ours_from_shards(
    sizes: Sizes, device: torch.device, folder: Path, decoder: Literal["cpu", "gpu"], **options: bool
) -> Step:
    """JPEGs of 500x375 from shards, through all that a run does."""
    few = sizes.batch < 64
    shards = folder / "shards"
    if not shards.exists():
        prepare(folder / "material", None, None, 16 if few else 256, 1 if few else 16, 16)
        pack(open_source(f"folder:{folder / 'material/many'}"), shards, workers=0)
    source: Source = open_source(f"shards:{shards}", cache_mb=0)
    workers = 1 if few else max(1, (os.cpu_count() or 2) - 1)
    compute = Compute(device=device.type, decoder=decoder, workers=workers, **options)
    run = run_of(source, "v2", sizes.size, sizes.encoder, sizes.batch, sizes.queue, 0.999, compute)
    return fed(run, sizes.batch)


def plain(sizes: Sizes, device: torch.device, fair: bool) -> Step:
    """The released code's step: with its defaults, or, to be fair, with autocast and channels last."""
    memory_format = torch.channels_last if fair else torch.contiguous_format
    backbone = build_encoder(sizes.encoder, small_stem=sizes.size <= 96)
    model = PlainMoCo(backbone, int(backbone.num_features), sizes.queue, 0.999, 0.07)
    model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    views = views_on(sizes.batch, sizes.size, device, memory_format)

    def take() -> int:
        with torch.autocast(device.type, torch.bfloat16, enabled=fair):
            logits, labels = model(*views)
            loss = criterion(logits, labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return sizes.batch

    return Step(take)


def with_lightly(sizes: Sizes, device: torch.device, workers: int) -> Step:
    """lightly's modules, loss and loader, as its MoCo example puts them together."""
    from lightly.loss import NTXentLoss
    from lightly.models.utils import update_momentum

    backbone = build_encoder(sizes.small_encoder, small_stem=True)
    model = LightlyMoCo(backbone, int(backbone.num_features)).to(device)
    criterion = NTXentLoss(temperature=0.07, memory_bank_size=(sizes.small_queue, 128)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    pictures = Pictures(_small_images(sizes), lightly_v2(sizes.small_size, gaussian_blur=0.0))
    loader = loader_of(pictures, sizes.small_batch, workers)
    batches: Iterator[Any] = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())

    def take() -> int:
        (view1, view2), _ = next(batches)
        update_momentum(model.backbone, model.backbone_momentum, m=0.99)
        update_momentum(model.head, model.head_momentum, m=0.99)
        loss = criterion(model(view1.to(device)), model.forward_momentum(view2.to(device)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return sizes.small_batch

    return Step(take)


def _small_images(sizes: Sizes) -> np.ndarray:
    """uint8 (n, size, size, 3), drawn: what they show does not matter here."""
    count = 4 * sizes.small_batch if sizes.small_batch < 64 else 50_000
    drawn = draw(torch.arange(min(count, 4096)), size=sizes.small_size).images
    repeated = drawn.repeat(-(-count // len(drawn)), 1, 1, 1)[:count]
    return repeated.permute(0, 2, 3, 1).contiguous().numpy()
