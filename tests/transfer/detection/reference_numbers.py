"""The numbers that Detectron2 produced (reference/README.md), and the detectors with those weights.

They are the repository's selection, or those of the folder that the environment variable DETECTION_REFERENCE names.
"""

import gzip
import json
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
from tests.transfer.detection import select_reference
from tests.transfer.detection.seeded_weights import decode
from tests.transfer.detection.select_reference import REFERENCE, REPOSITORY, WHOLE, Selection, flat

HERE = Path(os.environ.get("DETECTION_REFERENCE", REFERENCE))
IS_WHOLE = (HERE / "inputs.pt").exists()
THINNING = WHOLE if IS_WHOLE else REPOSITORY
MODELS = [name for name in select_reference.MODELS if list(HERE.glob(f"{name}.*"))]
if not MODELS:
    raise FileNotFoundError(f"DETECTION_REFERENCE: no reference numbers in {HERE}")


class Numbers:
    """A tree of arrays: `numbers("losses/loss_cls")` is a tensor, `numbers.under("losses")` a dict of them."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __call__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def under(self, path: str) -> dict[str, Tensor]:
        """Those of numbers, without None and texts."""
        start = f"{path}/"
        return {
            k.removeprefix(start): self(k)
            for k, v in self.arrays.items()
            if k.startswith(start) and v.dtype.kind not in "UO"
        }

    def values(self, path: str) -> list:
        """Of a list of plain values: sizes, texts."""
        start, found = f"{path}/", []
        while f"{start}{len(found)}" in self.arrays:
            found.append(self.arrays[f"{start}{len(found)}"].item())
        return found

    def value(self, key: str) -> float | int | str:
        return self.arrays[key].item()

    def text(self, key: str) -> list[str] | dict:
        """What is kept as JSON."""
        return json.loads(str(self.arrays[key]))


@cache
def numbers(name: str) -> Numbers:
    """Of a structure, or `stages`: the inputs and single operations."""
    if IS_WHOLE:
        selection = Selection(HERE)
        return Numbers(flat(selection.stages() if name == "stages" else selection.model(name)))
    arrays = select_reference.read(HERE / f"{name}.npz")
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    if weights:
        state = decode(json.loads(str(arrays["param_names"])), weights)
        arrays |= {f"state_dict/{k}": v for k, v in state.items()}
    return Numbers(arrays)


@cache
def data() -> dict:
    """What concerns images, annotations and masks."""
    if IS_WHOLE:
        return Selection(HERE).data()
    with gzip.open(HERE / "data.pt.gz") as file:
        return torch.load(file, weights_only=True)


@cache
def pasted() -> dict[str, np.ndarray]:
    """Masks before and after pasting: `NAME_IMAGE_logits`, `_boxes`, `_masks`."""
    return Selection(HERE).pasted() if IS_WHOLE else evaluation("pasted")


@cache
def evaluation(name: str) -> dict[str, np.ndarray]:
    """`voc_eval` or `coco_eval`."""
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@cache
def text(key: str) -> dict:
    """`init`: statistics of fresh weights; `checkpoint`: names in a converted checkpoint; of each structure."""
    if IS_WHOLE:
        return Selection(HERE).names()[key]
    with np.load(HERE / "names.npz", allow_pickle=False) as file:
        return json.loads(str(file[key]))


@cache
def config(name: str) -> dict:
    """Detectron2's settings of a structure."""
    return numbers(name).text("cfg")


@cache
def sizes(key: str = "sizes_hw") -> list[tuple[int, int]]:
    """(height, width) of each image; `output_sizes_hw`: those to which detections are scaled."""
    stages = numbers("stages")
    return [tuple(stages.values(f"inputs/{key}/{i}")) for i in range(len(stages.under("inputs/images")))]


def inputs(bitmaps: bool = False, empty: bool = False) -> tuple[list[Tensor], list[Target]]:
    """The images and their objects; `empty`: the second has none."""
    stages, targets = numbers("stages"), []
    images = list(stages.under("inputs/images").values())
    for i in range(len(images)):
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


def options(name: str) -> dict[str, int | bool]:
    """The arguments of `build_detector` that give a structure the widths of its settings."""
    cfg, structure = config(name), name.split("_")[0]
    found: dict[str, int | bool] = {}
    if structure == "dc5":
        found = {"neck": 0, "width": cfg["MODEL.ROI_BOX_HEAD.FC_DIM"]}
    elif structure == "fpn":
        found = {"pyramid": cfg["MODEL.FPN.OUT_CHANNELS"], "convs": cfg["MODEL.ROI_BOX_HEAD.CONV_DIM"]}
        found["width"] = cfg["MODEL.ROI_BOX_HEAD.FC_DIM"]
    if cfg["MODEL.MASK_ON"]:
        found |= {
            "masks": True,
            "mask_convs" if structure == "fpn" else "mask_width": cfg["MODEL.ROI_MASK_HEAD.CONV_DIM"],
        }
    return found


def detector(name: str) -> Detector:
    """One of the structures, in training mode, sampling without random numbers."""
    cfg = config(name)
    encoder = wide_resnet50(cfg["MODEL.RESNETS.WIDTH_PER_GROUP"] / 64)
    built = build_detector(name.split("_")[0], encoder, cfg["MODEL.ROI_HEADS.NUM_CLASSES"], **options(name))
    built.load_state_dict(from_detectron2(built, numbers(name).under("state_dict")))
    built.order = index_order
    return built.train()
