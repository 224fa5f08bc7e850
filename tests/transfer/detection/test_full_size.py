"""Every published structure at full size makes a step forward and backward."""

import pytest
import torch

from moco.encoders import build_encoder
from moco.transfer.detection.instances import Target
from moco.transfer.detection.structures import build_detector


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "options"), [("c4", {"masks": True}), ("dc5", {}), ("fpn", {"masks": True})])
def test_a_step_of_two_images_of_800_pixels(structure, options):
    detector = build_detector(structure, build_encoder("resnet50"), 20, **options)
    # Of 512 regions an image the heads' share alone takes minutes; `python -m bench.detection --full` has them all.
    detector.sampled_regions = 16
    images = [torch.randint(0, 256, (3, 800, side), dtype=torch.uint8) for side in (1066, 800)]
    boxes = torch.tensor([[100.0, 100, 400, 500], [300, 50, 700, 300]])
    masks = torch.zeros(2, 800, 1066, dtype=torch.bool)
    masks[0, 100:500, 100:400] = masks[1, 50:300, 300:700] = True
    targets = [Target(boxes, torch.tensor([3, 7]), masks[:, :, : image.shape[-1]]) for image in images]
    losses = detector(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
