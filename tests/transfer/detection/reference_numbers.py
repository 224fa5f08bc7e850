"""The numbers that Detectron2 produced (reference/README.md), and the detectors with those weights."""

import gzip
import json
import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco.encoders.resnet import wide_resnet50
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.instances import Target
from moco.transfer.detection.names import from_detectron2
from moco.transfer.detection.sampler import index_order
from moco.transfer.detection.structures import build_detector

HERE = Path(os.environ.get("DETECTION_REFERENCE", Path(__file__).parent / "reference"))
BUILDS = {
    "c4_box": ("c4", 4, {}),
    "c4_mask": ("c4", 4, {"masks": True, "mask_width": 16}),
    "dc5": ("dc5", 3, {"neck": 0, "width": 16}),
    "fpn_mask": ("fpn", 4, {"masks": True, "pyramid": 16, "convs": 16, "width": 32, "mask_convs": 16}),
}
MODELS = [name for name in BUILDS if (HERE / f"{name}.npz").exists()]


class Numbers:
    """A tree of arrays: `numbers("losses/loss_cls")` is a tensor, `numbers.under("losses")` a dict of them."""

    def __init__(self, path: Path) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        with np.load(path, allow_pickle=False) as file:
            data, start = file["data"].tobytes(), 0
            for key, kind, shape in json.loads(str(file["index"])):
                count, dtype = math.prod(shape), np.dtype(kind)
                stored = np.frombuffer(
                    data, np.uint8, count * dtype.itemsize, start
                )  # by byte, see select_reference.py
                self.arrays[key] = stored.reshape(dtype.itemsize, -1).T.copy().view(dtype).reshape(shape)
                start += count * dtype.itemsize

    def __call__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def under(self, path: str) -> dict[str, Tensor]:
        start = f"{path}/"
        return {
            k.removeprefix(start): self(k)
            for k, v in self.arrays.items()
            if k.startswith(start) and v.dtype.kind != "U"
        }

    def text(self, key: str) -> list[str]:
        return json.loads(str(self.arrays[key]))


@cache
def numbers(name: str) -> Numbers:
    return Numbers(HERE / f"{name}.npz")


@cache
def data() -> dict:
    """What concerns images, annotations and masks."""
    with gzip.open(Path(__file__).parent / "reference" / "data.pt.gz") as file:
        return torch.load(file, weights_only=True)


def text(key: str) -> dict:
    with np.load(HERE / "names.npz", allow_pickle=False) as file:
        return json.loads(str(file[key]))


def inputs(bitmaps: bool = False, empty: bool = False) -> tuple[list[Tensor], list[Target]]:
    """The two images and their objects; `empty`: the second has none."""
    stages, targets = numbers("stages"), []
    images = [stages(f"inputs/images/{i}") for i in range(2)]
    for i in range(2):
        boxes, classes = (stages(f"inputs/gt_{kind}/{i}") for kind in ("boxes", "classes"))
        found = stages.under(f"inputs/gt_polygons/{i}")
        masks = [[v.numpy() for k, v in found.items() if k.startswith(f"{n}/")] for n in range(len(boxes))]
        packed = stages.arrays[f"inputs/gt_bitmaps/{i}"]
        if bitmaps:
            masks = torch.from_numpy(np.unpackbits(packed, axis=-1, count=images[i].shape[-1]).astype(bool))
        targets.append(Target(boxes, classes, masks))
    if empty:
        targets[1] = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])
    return images, targets


def detector(name: str) -> Detector:
    """One of the four, in training mode, sampling without random numbers."""
    structure, base, options = BUILDS[name]
    built = build_detector(structure, wide_resnet50(base / 64), 5, **options)
    state = numbers(name).under("state_dict")
    state |= {
        k.replace("running_var", "num_batches_tracked"): torch.tensor(0) for k in state if k.endswith("running_var")
    }
    built.load_state_dict(from_detectron2(built, state))
    built.order = index_order
    return built.train()
