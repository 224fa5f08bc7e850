"""What each difference to torchvision's detectors changes, one at a time, in a detector that `moco detect` trained.

    python -m bench.differences RUN [--images N] [--side PIXELS]

Differences in evaluation: AP of the test images. Differences in training: losses of training images.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

import moco
from moco.runtime.device import choose_device
from moco.transfer.detection import inference, roi_heads, rpn
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.evaluation.evaluate import evaluate_detector
from moco.transfer.detection.evaluation.evaluation import Metric
from moco.transfer.detection.task import on_device, open_sets
from moco.transfer.run import DetectionRun
from moco.transfer.tasks import open_task


def as_torchvision(features: Tensor, rois: Tensor, size: int, scale: float, **_: Any) -> Tensor:
    """ROIAlign a half pixel off, with 2 x 2 samples a bin."""
    pooled: Tensor = roi_align(features, rois, size, scale, sampling_ratio=2, aligned=False)
    return pooled


@contextmanager
def rounded_anchors(detector: Detector) -> Iterator[None]:
    """The anchors of every position as torchvision rounds them."""
    cells = [cell.clone() for cell in detector.rpn.anchors.buffers()]
    try:
        for cell in detector.rpn.anchors.buffers():
            cell.round_()
        yield
    finally:
        for cell, before in zip(detector.rpn.anchors.buffers(), cells, strict=True):
            cell.copy_(before)


def without_smoothing(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear on floats, each pixel from its four neighbours alone."""
    resized = F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)
    return resized[0].round().byte()


@contextmanager
def bgr(detector: Detector) -> Iterator[None]:
    """Images in the other order of colours."""
    batch = detector.batch
    with patch.object(detector, "batch", lambda images: batch([image.flip(0) for image in images])):
        yield


@contextmanager
def fewer_proposals(detector: Detector) -> Iterator[None]:
    """1,000 before NMS in evaluation, of all levels together."""
    limits = detector.rpn.limits
    detector.rpn.limits = replace(limits, before_nms=1000)
    try:
        yield
    finally:
        detector.rpn.limits = limits


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.differences", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=100, help="test images")
    parser.add_argument("--side", type=int, help="their shorter side; by default the run's, which may be their own")
    options = parser.parse_args()
    run = DetectionRun.open(options.run)
    config: Any = run.config()
    device = choose_device("auto", "fp32")
    trained = moco.load_detector(options.run).to(device.device)
    detector = trained.detector
    test = open_sets(config)[1]
    test = test.subset(range(min(options.images, len(test))))

    side, metric = options.side or trained.side, config.evaluation.metric

    def ap(metric: Metric = metric, name: str = "AP") -> str:
        found = evaluate_detector(detector, test, device, metric=metric, side=side, maximum=trained.maximum)
        return f"{found.numbers[name]:.1f}"

    rows: list[tuple[str, str, str]] = [("as it is", "AP", ap())]
    rows += [(f"the metric {other}", "AP50", ap(other, "AP50")) for other in get_args(Metric)]
    changes: list[tuple[str, Callable[[], Any]]] = [
        ("ROIAlign as torchvision's", lambda: patch.object(roi_heads, "roi_align", as_torchvision)),
        ("anchors rounded", lambda: rounded_anchors(detector)),
        ("resized without smoothing", lambda: patch.object(inference, "resize_image", without_smoothing)),
        ("images in BGR", lambda: bgr(detector)),
        ("1,000 proposals before NMS", lambda: fewer_proposals(detector)),
    ]
    for name, change in changes:
        with change():
            rows.append((name, "AP", ap()))
    rows += of_losses(config, detector, device.device)
    print("| difference | | |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def of_losses(config: Any, detector: Detector, device: torch.device) -> list[tuple[str, str, str]]:
    """The losses of a batch of training images, as they are and changed."""
    task = open_task(config)
    samples = [task.read(0, index) for index in range(min(8, task.images))]
    images = [image.to(device) for image, _ in samples]
    targets = [on_device(target, device) for _, target in samples]

    def losses() -> dict[str, float]:
        torch.manual_seed(0)
        return {name: loss.item() for name, loss in detector(images, targets).items()}

    detector.train()
    plain = losses()
    rows = [("as it is", name, f"{value:.4f}") for name, value in plain.items()]
    smooth = lambda a, b, reduction: F.smooth_l1_loss(a, b, reduction=reduction, beta=1 / 9)  # noqa: E731
    detector.beta, beta = 1 / 9, detector.beta
    with patch.object(rpn.F, "l1_loss", smooth):
        changed = losses()
    detector.beta = beta
    rows += [("smooth L1, beta 1/9", name, f"{changed[name]:.4f}") for name in ("loss_rpn_loc", "loss_box_reg")]
    counted: list[int] = []
    sample = rpn.sample_anchors

    def counting(labels: Tensor, order: Any) -> Tensor:
        found = sample(labels, order)
        counted.append(int((found >= 0).sum()))
        return found

    with patch.object(rpn, "sample_anchors", counting):
        losses()
    factor = 256 * len(images) / max(sum(counted), 1)
    rows += [
        ("divided by the anchors sampled", name, f"{plain[name] * factor:.4f}")
        for name in ("loss_rpn_cls", "loss_rpn_loc")
    ]
    return rows


if __name__ == "__main__":
    main()
