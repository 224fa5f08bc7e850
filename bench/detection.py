"""A training step and inference of each structure beside torchvision's nearest detector: images/s and peak memory.

    python -m bench.detection [STRUCTURE ...] [--full] [--repeats 3] [--ours-only]

Both sides have the same body (its BN trained), images, batch of 2, widths of the heads, limits of proposals, and as
many regions: a difference is reported. By default a ResNet-50 of a quarter of the width, heads of 64 channels and 320
pixels; --full is ResNet-50 at 800 pixels.
The median of the repetitions, after one that is not counted; CPU seconds on a CPU, so that others' share is left out.
Each measurement is a process of its own, whose peak memory is the process's (CPU) or the allocator's (GPU).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign

from moco.encoders.resnet import wide_resnet50
from moco.transfer.detection.backbones import channels, conv_bn, dilate, stem
from moco.transfer.detection.instances import Target
from moco.transfer.detection.solver import build_sgd
from moco.transfer.detection.structures import SIZES, build_detector

STRUCTURES = ("c4", "c4-masks", "dc5", "fpn", "fpn-masks")
CLASSES, BATCH = 20, 2
ALL_SIZES = (SIZES,)
RATIOS = (0.5, 1.0, 2.0)


class Widths:
    """Of the body, as a share of ResNet-50, and of the heads."""

    def __init__(self, full: bool) -> None:
        self.body, self.side = (1.0, 800) if full else (0.25, 320)
        self.neck, self.convs, self.fc = (512, 256, 1024) if full else (128, 64, 256)


def ours(structure: str, widths: Widths) -> nn.Module:
    kind, masks = structure.split("-")[0], structure.endswith("masks")
    options = {
        "c4": {"masks": masks, "mask_width": widths.convs},
        "dc5": {"neck": widths.neck, "width": widths.fc},
        "fpn": {"masks": masks, "pyramid": widths.convs, "convs": widths.convs, "width": widths.fc},
    }[kind]
    if kind == "fpn":
        options["mask_convs"] = widths.convs
    return build_detector(kind, wide_resnet50(widths.body), CLASSES, **options)


class OneMap(nn.Module):
    """A ResNet up to conv4, or with a dilated conv5 and the neck, as torchvision's detectors take it."""

    def __init__(self, body: ResNet, neck: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, neck or channels(body.layer3)
        self.stages: list[nn.Module] = [body.layer1, body.layer2, body.layer3]
        if neck:
            dilate(body.layer4)
            self.stages += [body.layer4, conv_bn(channels(body.layer4), neck, 3)]
            self.neck = self.stages[-1]

    def forward(self, images: Tensor) -> Tensor:
        features = stem(self.body, images)
        for stage in self.stages:
            features = stage(features)
        return features


class Conv5(nn.Module):
    """conv5 and one more BN as box head."""

    def __init__(self, layer4: nn.Module, length: int) -> None:
        super().__init__()
        self.layer4, self.norm = layer4, nn.BatchNorm2d(length)

    def forward(self, regions: Tensor) -> Tensor:
        vectors: Tensor = self.norm(self.layer4(regions)).mean((2, 3))
        return vectors


def theirs(structure: str, widths: Widths) -> nn.Module:
    """torchvision's Faster or Mask R-CNN; without masks in C4, whose mask branch it cannot share."""
    body, kind = wide_resnet50(widths.body), structure.split("-")[0]
    options: dict[str, object] = {"min_size": widths.side, "max_size": 2 * widths.side, "rpn_pre_nms_top_n_test": 1000}
    if kind == "fpn":
        lengths = [channels(stage) for stage in (body.layer1, body.layer2, body.layer3, body.layer4)]
        names = {f"layer{n}": str(n - 1) for n in (1, 2, 3, 4)}
        backbone: nn.Module = BackboneWithFPN(body, names, lengths, widths.convs, norm_layer=nn.BatchNorm2d)
        convs = [widths.convs] * 4
        options["rpn_post_nms_top_n_train"] = 1000
        options["box_head"] = FastRCNNConvFCHead((widths.convs, 7, 7), convs, [widths.fc], nn.BatchNorm2d)
        length = widths.fc
    else:
        neck = widths.neck if kind == "dc5" else 0
        backbone = OneMap(body, neck)
        anchors = AnchorGenerator(ALL_SIZES, (RATIOS,))
        limits = {"rpn_pre_nms_top_n_train": 12000, "rpn_pre_nms_top_n_test": 6000}
        options |= {**limits, "rpn_post_nms_top_n_train": 2000, "rpn_anchor_generator": anchors}
        options["box_roi_pool"] = MultiScaleRoIAlign(["0"], 7 if neck else 14, 2)
        length = widths.fc if neck else channels(body.layer4)
        options["box_head"] = TwoMLPHead(neck * 49, widths.fc) if neck else Conv5(body.layer4, length)
    options["box_predictor"] = FastRCNNPredictor(length, CLASSES + 1)
    if structure != "fpn-masks":
        return FasterRCNN(backbone, **options)
    options["mask_head"] = MaskRCNNHeads(widths.convs, [widths.convs] * 4, 1, nn.BatchNorm2d)
    options["mask_predictor"] = MaskRCNNPredictor(widths.convs, widths.convs, CLASSES + 1)
    return MaskRCNN(backbone, **options)


def confident(model: nn.Module) -> None:
    """Scores as far apart as a trained detector's, on both sides: fresh ones are all alike, and below the least."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(("classes.weight", "cls_score.weight")):
            nn.init.normal_(parameter, std=2 / parameter.shape[1] ** 0.5)


def scattered(model: nn.Module) -> None:
    """Scores of the anchors at random, and no moves, on both sides, once their layers have been computed.

    Fresh layers score neighbours alike: after NMS one side has a third of the other's proposals, and so of its work.
    """
    rpn = model.rpn if hasattr(model.rpn, "losses") else model.rpn.head  # ours or torchvision's

    def replace(_module: nn.Module, _inputs: object, outputs: tuple[list[Tensor], list[Tensor]]) -> Any:
        generator = torch.Generator(outputs[0][0].device).manual_seed(0)
        scores, moves = outputs
        random = [torch.empty_like(each).uniform_(generator=generator) for each in scores]
        return [0 * each + own for each, own in zip(scores, random, strict=True)], [0 * each for each in moves]

    rpn.register_forward_hook(replace)


def regions_of(model: nn.Module) -> list[int]:
    """How many regions the box head had, call after call, from now on."""
    seen: list[int] = []
    head = model.box_predictor if hasattr(model, "box_predictor") else model.roi_heads.box_predictor
    head.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    return seen


def images(side: int) -> tuple[list[Tensor], list[Target]]:
    """Two images with eight objects each."""
    torch.manual_seed(0)
    pixels, targets = [], []
    for width in (side * 4 // 3, side):
        pixels.append(torch.randint(0, 256, (3, side, width), dtype=torch.uint8))
        corner = torch.rand(8, 2) * side * 0.6
        boxes = torch.cat((corner, corner + side * (0.05 + 0.3 * torch.rand(8, 2))), 1)
        rows, columns = torch.arange(side)[:, None], torch.arange(width)
        masks = torch.stack(
            [((columns >= x1) & (columns < x2)) & ((rows >= y1) & (rows < y2)) for x1, y1, x2, y2 in boxes]
        )
        targets.append(Target(boxes, torch.arange(8), masks))
    return pixels, targets


def measure(structure: str, side: str, training: bool, full: bool, repeats: int) -> dict[str, float]:
    """Seconds a pass over the batch (median), and peak memory in MB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    widths = Widths(full)
    model = {"ours": ours, "torchvision": theirs}[side](structure, widths).to(device).train(training)
    confident(model)
    scattered(model)
    regions = regions_of(model)
    pixels, targets = images(widths.side)
    pixels = [image.to(device) for image in pixels]
    targets = [Target(t.boxes.to(device), t.classes.to(device), t.masks.to(device)) for t in targets]
    arguments: tuple[object, ...] = (pixels, targets) if training else (pixels,)
    if side == "torchvision":
        floats = [image / 255 for image in pixels]
        labelled = [{"boxes": t.boxes, "labels": t.classes + 1, "masks": t.masks.byte()} for t in targets]
        arguments = (floats, labelled) if training else (floats,)
    optimizer = build_sgd(model, 1e-6)

    def step() -> None:
        if not training:
            with torch.inference_mode():
                model(*arguments)
            return
        optimizer.zero_grad()
        sum(model(*arguments).values()).backward()
        optimizer.step()

    seconds = [_timed(step, device) for _ in range(repeats + 1)][min(repeats, 1) :]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    return {"seconds": statistics.median(seconds), "memory": memory, "regions": regions[-1]}


def _timed(step: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def in_process(*words: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "bench.detection", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    numbers: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.detection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("structures", nargs="*", default=STRUCTURES)
    parser.add_argument("--full", action="store_true", help="ResNet-50 at 800 pixels")
    parser.add_argument("--repeats", type=int, default=3, help="0: one step, that is counted")
    parser.add_argument("--ours-only", action="store_true", help="without torchvision's")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, mode = options.one
        print(json.dumps(measure(options.structures[0], side, mode == "train", options.full, options.repeats)))
        return
    shared = ["--repeats", str(options.repeats), *(["--full"] if options.full else [])]
    print("| structure | | images/s | torchvision | ratio | peak MB | torchvision | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for structure in options.structures:
        for mode in ("train", "infer"):
            own = in_process(structure, *shared, "--one", "ours", mode)
            cells = [f"{BATCH / own['seconds']:.2f}", "", "", f"{own['memory']:.0f}", "", ""]
            if not options.ours_only:
                other = in_process(structure, *shared, "--one", "torchvision", mode)
                if other["regions"] != own["regions"]:
                    print(
                        f"{structure}: {own['regions']:.0f} regions, torchvision {other['regions']:.0f}",
                        file=sys.stderr,
                    )
                speed, memory = other["seconds"] / own["seconds"], own["memory"] / other["memory"]
                cells[1:3] = [f"{BATCH / other['seconds']:.2f}", f"**{speed:.2f}**"]
                cells[4:] = [f"{other['memory']:.0f}", f"{memory:.2f}"]
            words = {"train": "training step", "infer": "inference"}[mode]
            print(f"| {structure} | {words} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
