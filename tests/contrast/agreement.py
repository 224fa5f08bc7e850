"""How far the mechanisms get from their literal definitions in 10 steps in float64, on any number of ranks."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moco.contrast import EndToEnd, InfoNCE, Mechanism, MemoryBank, MoCo, MoCoV3
from moco.contrast.collectives import average, local, world_size
from tests.contrast.literal import Algorithm1, LiteralEndToEnd, LiteralMemoryBank, LiteralMoCoV3

STEPS, BATCH, LR = 10, 48, 0.02
Deviations = dict[str, float]


def bn_encoder() -> nn.Module:
    """Images (n, 3, 6, 6) to 16 features, with BN over places and BN over samples alone."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 16), nn.BatchNorm1d(16), nn.ReLU()
    )


def views(step: int, n: int = BATCH) -> tuple[Tensor, Tensor]:
    """Two views of n images, each image with a mean of its own, so that it matters with which others BN sees it."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(n, 3, 6, 6, generator=generator, dtype=torch.float64)
    images += 2 * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    return images, images.flip(3) * 0.8 + 0.3 * torch.randn(images.shape, generator=generator, dtype=torch.float64)


def largest(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest difference between any two numbers."""
    return max(float((one - other).detach().abs().max()) for one, other in zip(ours, theirs, strict=True))


def compare(deviations: Deviations, **pairs: tuple[Iterable[Tensor], Iterable[Tensor]]) -> None:
    """How far each pair of tensors has differed at most."""
    for name, pair in pairs.items():
        deviations[name] = max(deviations.get(name, 0.0), largest(*pair))


def mean_over_ranks(tensors: Iterable[Tensor]) -> list[Tensor]:
    means = [tensor.detach().clone() for tensor in tensors]
    average(means)
    return means


def running_statistics(module: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in module.named_buffers() if "running" in name]


def train(
    mechanism: Mechanism, optimizer: torch.optim.Optimizer, inputs: list[Tensor], chunks: int = 1
) -> list[Tensor]:
    """A step on this rank's share of the inputs. Returns the mean loss and accuracy over chunks and ranks."""
    inputs, results = [local(x) for x in inputs], []

    def backward(forward: Callable[[], InfoNCE]) -> None:
        result = forward()
        (result.loss / chunks).backward()
        results.append(torch.stack((result.loss.detach(), result.accuracy.double())))

    if chunks > 1:
        mechanism.accumulate(*inputs, chunks=chunks, backward=backward)  # type: ignore[operator]
        average([p.grad for p in mechanism.parameters() if p.grad is not None])
    else:
        ddp = DistributedDataParallel(mechanism, broadcast_buffers=False) if world_size() > 1 else mechanism
        backward(partial(ddp, *inputs))
    optimizer.step()
    optimizer.zero_grad()
    loss, accuracy = mean_over_ranks(torch.stack(results).mean(dim=0))
    return [loss, as_measured(float(accuracy))]


def as_measured(accuracy: float) -> Tensor:
    """To five digits: it is a float32."""
    return torch.tensor(round(accuracy, 5), dtype=torch.float64)


def sgd(mechanism: Mechanism) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in mechanism.parameters() if p.requires_grad], lr=LR)


def moco(chunks: int = 1, **options: Any) -> Deviations:
    options = {"shuffle": True, "symmetric": False, "queue_size": 70, **options}
    torch.manual_seed(0)
    ours = MoCo(bn_encoder(), 8, momentum=0.9, temperature=0.2, bn_group=4, **options).double()
    shuffle, symmetric = options["shuffle"], options["symmetric"]
    theirs = Algorithm1(ours.query, ours.queue.keys, 0.9, 0.2, LR, 4, shuffle, symmetric)
    optimizer, deviations = sgd(ours), {}
    for step in range(STEPS):
        x1, x2 = views(step)
        result = train(ours, optimizer, [x1, x2], chunks)
        loss, accuracy, f_k = theirs.step(x1, x2)
        compare(
            deviations,
            loss=([result[0]], [loss]),
            accuracy=([result[1]], [as_measured(accuracy)]),
            query=(ours.query.parameters(), theirs.f_q.parameters()),
            key=(ours.key.parameters(), f_k.parameters()),
            queue=([ours.queue.keys], [torch.stack(theirs.queue)]),
            enqueued=([ours.queue.enqueued], [torch.tensor(theirs.enqueued)]),
        )
        assert ours.queue.total == theirs.enqueued
    if chunks == 1:  # in chunks the running statistics move more often
        seen = mean_over_ranks(running_statistics(ours.query) + running_statistics(ours.key))
        compare(deviations, statistics=(seen, running_statistics(theirs.f_q) + running_statistics(theirs.f_k)))
    return deviations


def end_to_end(**options: Any) -> Deviations:
    options = {"shuffle": True, "symmetric": False, **options}
    torch.manual_seed(0)
    ours = EndToEnd(bn_encoder(), 8, temperature=0.2, bn_group=4, **options).double()
    theirs = LiteralEndToEnd(ours.query, 0.2, LR, 4, options["shuffle"], options["symmetric"])
    optimizer, deviations = sgd(ours), {}
    for step in range(STEPS):
        x1, x2 = views(step)
        result = train(ours, optimizer, [x1, x2])
        loss, accuracy = theirs.step(x1, x2)
        compare(
            deviations,
            loss=([result[0]], [loss]),
            accuracy=([result[1]], [as_measured(accuracy)]),
            query=(ours.query.parameters(), theirs.f_q.parameters()),
            key=(ours.key.parameters(), theirs.f_k.parameters()),
        )
    return deviations


def memory_bank(chunks: int = 1) -> Deviations:
    torch.manual_seed(0)
    ours = MemoryBank(bn_encoder(), 100, 8, draws=40, momentum=0.7, temperature=0.2, bn_group=4, head="mlp").double()
    theirs = LiteralMemoryBank(ours.query, ours.vectors, 40, 0.7, 0.2, LR, 4)
    optimizer, deviations = sgd(ours), {}
    for step in range(STEPS):
        view, images = views(step)[0], torch.randperm(100)[:BATCH]
        result = train(ours, optimizer, [view, images], chunks)
        loss, accuracy = theirs.step(view, images)
        compare(
            deviations,
            loss=([result[0]], [loss]),
            accuracy=([result[1]], [as_measured(accuracy)]),
            query=(ours.query.parameters(), theirs.f_q.parameters()),
            vectors=([ours.vectors], [torch.stack(theirs.vectors)]),
        )
    assert theirs.left_out > 0
    return deviations


def moco_v3(**options: Any) -> Deviations:
    torch.manual_seed(0)
    ours = MoCoV3(bn_encoder(), 8, 0.9, 0.5, total_steps=STEPS - 3, hidden=24, **options).double()
    theirs = LiteralMoCoV3(ours.query, ours.predictor, 0.9, 0.5, LR, STEPS - 3)
    optimizer, deviations = sgd(ours), {}
    for step in range(STEPS):
        x1, x2 = views(step)
        compare(
            deviations,
            m=([torch.as_tensor(ours.current_momentum())], [torch.tensor(theirs.momentum(), dtype=torch.float64)]),
        )
        result = train(ours, optimizer, [x1, x2])
        loss, accuracy = theirs.step(x1, x2)
        compare(
            deviations,
            loss=([result[0]], [loss]),
            accuracy=([result[1]], [as_measured(accuracy)]),
            query=(ours.query.parameters(), theirs.f_q.parameters()),
            predictor=(ours.predictor.parameters(), theirs.predictor.parameters()),
            key=(ours.key.parameters(), theirs.f_k.parameters()),
        )
    seen = running_statistics(ours.query) + running_statistics(ours.key) + running_statistics(ours.predictor)
    literal = [theirs.f_q, theirs.f_k, theirs.predictor]
    compare(deviations, statistics=(seen, [buffer for module in literal for buffer in running_statistics(module)]))
    return deviations


CASES: dict[str, Callable[[], Deviations]] = {
    "moco": moco,
    "moco with an MLP head, symmetric": partial(moco, head="mlp", hidden=12, symmetric=True),
    "moco without shuffling": partial(moco, shuffle=False),
    "moco in 2 chunks": partial(moco, chunks=2),
    "moco in 3 chunks, symmetric": partial(moco, chunks=3, symmetric=True),
    "moco of fewer keys than images": partial(moco, queue_size=31),
    "end-to-end": end_to_end,
    "end-to-end, symmetric": partial(end_to_end, head="mlp", symmetric=True),
    "end-to-end without shuffling": partial(end_to_end, shuffle=False),
    "memory bank": memory_bank,
    "memory bank in 2 chunks": partial(memory_bank, chunks=2),
    "moco v3": moco_v3,
    "moco v3 as for a ViT": partial(moco_v3, projector_layers=3, predictor_bn=True),
}
