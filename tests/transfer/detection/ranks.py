"""Run by test_ranks.py on each rank: writes "equal" to FOLDER/<rank> if two ranks give what one process does.

In float64, so that no sample depends on the order of a sum. The ranks have two images and one.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from moco.contrast.collectives import average, rank
from moco.encoders.resnet import wide_resnet50
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.instances import Target
from moco.transfer.detection.sampler import index_order
from moco.transfer.detection.structures import build_detector

SMALL = {"pyramid": 8, "convs": 8, "width": 16}
BUILDS = {
    "c4": ("c4", {"masks": True, "mask_width": 8}),
    "dc5": ("dc5", {"neck": 16, "width": 16}),
    "fpn": ("fpn", {"masks": True, "mask_convs": 8, **SMALL}),
    "keypoints": ("fpn", {"keypoints": 3, "keypoint_convs": 8, **SMALL}),
}


def batch() -> tuple[list[Tensor], list[Target]]:
    """Three images, the second without an object."""
    images, targets = [], []
    for count in (2, 0, 1):
        images.append(torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8))
        boxes = torch.tensor([[10.0, 10, 70, 60], [30, 5, 60, 40]])[:count]
        masks = torch.zeros(count, 64, 96, dtype=torch.bool)
        masks[:, 20:50, 30:60] = True
        points = torch.tensor([[[20.0, 30, 2], [40, 35, 1], [0, 0, 0]]]).repeat(count, 1, 1)
        targets.append(Target(boxes, torch.tensor([1, 0])[:count], masks, points))
    return images, targets


def detector(name: str) -> Detector:
    torch.manual_seed(0)
    structure, options = BUILDS[name]
    built = build_detector(structure, wide_resnet50(2 / 64), 2, **options)
    for parameter in built.parameters():  # initial values too small to tell a wrong gradient
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    built.rpn.training_limits.after_nms = 40
    built.order = index_order
    float32 = built.batch
    built.batch = lambda images: float32(images).double()  # type: ignore[method-assign]
    return built.double().train()


def step(name: str, rows: slice) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
    """Losses, gradients and buffers of these images of the batch."""
    built = detector(name)
    torch.manual_seed(1)
    images, targets = batch()
    losses = built(images[rows], targets[rows])
    sum(losses.values()).backward()
    gradients = [parameter.grad for parameter in built.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return {key: loss.detach() for key, loss in losses.items()}, gradients, dict(built.named_buffers())


def main(words: list[str]) -> None:
    (folder,) = map(Path, words)
    whole = {name: step(name, slice(None)) for name in BUILDS}
    dist.init_process_group("gloo")
    for name, expected in whole.items():
        losses, gradients, buffers = step(name, (slice(0, 2), slice(2, 3))[rank()])
        average(list(losses.values()))
        average(gradients)
        assert all(loss > 0 for loss in losses.values()), losses
        for own, other in zip((losses, gradients, buffers), expected, strict=True):
            # Logits are in float32, so a gradient that is 0, before BN, is its rounding: 2e-8 on some processors.
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    (folder / str(rank())).write_text("equal")
    dist.barrier()  # none leaves while another still works
    dist.destroy_process_group()
