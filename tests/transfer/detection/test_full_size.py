"""Every published recipe at full size makes a step forward and backward with two images.

The heads have 16 regions of an image, as of the 512 of the recipes their share alone takes minutes: `python -m
bench.detection --full` has them all, with time and memory (bench/results/detection-cpu.md).
"""

import pytest
import torch

from moco.transfer.detection.instances import Target
from moco.transfer.detection.recipes import DETECTION
from moco.transfer.detection.task import build
from moco.transfer.segmentation import fcn
from moco.transfer.segmentation.recipes import SEGMENTATION
from moco.transfer.segmentation.task import build as build_segmentation

POINTS = 17
DETECTORS = {repr(recipe.config.model): name for name, recipe in DETECTION.items() if not name.startswith("own-")}
"""One recipe of each network: others differ in data and length alone."""
CROPS = [name for name in SEGMENTATION if not name.startswith("own-")]


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS.values())
def test_a_detector_makes_a_step_of_two_images_of_800_pixels(name):
    config = DETECTION[name].config
    detector = build(config, 20, POINTS if config.model.keypoints else 0)
    detector.sampled_regions = 16
    images = [torch.randint(0, 256, (3, 800, side), dtype=torch.uint8) for side in (1066, 800)]
    boxes = torch.tensor([[100.0, 100, 400, 500], [300, 50, 700, 300]])
    masks = torch.zeros(2, 800, 1066, dtype=torch.bool)
    masks[0, 100:500, 100:400] = masks[1, 50:300, 300:700] = True
    points = torch.tensor([350.0, 250.0, 2.0]).expand(2, POINTS, 3)  # x, y, visible
    targets = [Target(boxes, torch.tensor([3, 7]), masks[:, :, : image.shape[-1]], points) for image in images]
    take_step(detector, detector(images, targets))


@pytest.mark.slow
@pytest.mark.parametrize("name", CROPS)
def test_a_segmentation_network_makes_a_step_of_two_whole_crops(name):
    config = SEGMENTATION[name].config
    network, side = build_segmentation(config, 21), config.training.crop
    labels = torch.randint(0, 21, (2, side, side))
    labels[:, :50] = fcn.IGNORED
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    take_step(network, {"loss": fcn.pixel_loss(network(images), labels)})


def take_step(network: torch.nn.Module, losses: dict[str, torch.Tensor]) -> None:
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
