"""COCO's average precision and recall of boxes, masks and keypoints, computed by faster-coco-eval.

`record` keeps of an image what the metric needs, in little memory; `evaluate_coco` takes the records of all images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from moco.runtime.errors import UserError
from moco.transfer.detection.instances import Detections, Truth
from moco.transfer.detection.masks import draw_polygons, encode_masks, library

Kind = Literal["boxes", "masks", "keypoints"]
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Of boxes and masks: mean over overlaps 0.50 to 0.95, at 0.50, at 0.75; small (below 32 x 32 pixels), medium, large
(from 96 x 96); recall with 1, 10 and 100 detections an image."""
KEYPOINT_NUMBERS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
_IOU_TYPE = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
COCO_KEYPOINTS = 17


@dataclass
class Record:
    """An image's detections and objects in COCO's format, but for their numbers; masks are run lengths.

    Attributes:
        size: height and width of the image.
        found: of each detection category_id (its class), score, bbox (x, y, width, height), segmentation, keypoints.
        real: of each object category_id, bbox, area, iscrowd, segmentation, keypoints, num_keypoints.
    """

    size: tuple[int, int]
    found: list[dict[str, Any]]
    real: list[dict[str, Any]]


@dataclass
class CocoResult:
    """What was measured.

    Attributes:
        numbers: by NUMBERS or KEYPOINT_NUMBERS, 0 to 1; NaN where there is no such object.
        per_class: float64 (classes, 10), 0 to 1: average precision of each class at overlaps 0.50, 0.55, ... 0.95; NaN
            for a class without objects.
        curves: of each class recall and precision at 0.50, float64 (2, 101); NaN as before.
    """

    numbers: dict[str, float]
    per_class: np.ndarray
    curves: list[np.ndarray]

    @property
    def ap(self) -> float:
        """The mean over classes and overlaps, in percent."""
        return 100 * self.numbers["AP"]

    @property
    def ap50(self) -> float:
        """The mean over classes at 0.50, in percent."""
        return 100 * self.numbers["AP50"]

    @property
    def ap75(self) -> float:
        """The mean over classes at 0.75, in percent."""
        return 100 * self.numbers["AP75"]


def record(detections: Detections, truth: Truth) -> Record:
    """One image as `evaluate_coco` takes it.

    Raises ValueError if masks are of another size than the image.
    """
    return Record(truth.size, detected(detections, truth.size), annotated(truth))


def detected(detections: Detections, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The detections of an image of this height and width, as `Record.found`. Raises ValueError as `record`."""
    found = _columns(detections.boxes, detections.classes, detections.masks, detections.keypoints, size)
    for entry, score in zip(found, detections.scores.tolist(), strict=True):
        entry["score"] = score
    return found


def annotated(truth: Truth) -> list[dict[str, Any]]:
    """The objects of an image, as `Record.real`. Raises ValueError as `record`."""
    target, size = truth.target, truth.size
    masks = draw_polygons(target.masks, *size) if isinstance(target.masks, list) else target.masks
    real = _columns(target.boxes.double(), target.classes, masks, target.keypoints, size)
    for entry, area, crowd in zip(real, truth.area.tolist(), truth.crowd.tolist(), strict=True):
        entry |= {"area": area, "iscrowd": int(crowd)}
        if "keypoints" in entry:
            entry["num_keypoints"] = sum(visibility > 0 for visibility in entry["keypoints"][2::3])
    return real


def _columns(
    boxes: Tensor, classes: Tensor, masks: Tensor | None, keypoints: Tensor | None, size: tuple[int, int]
) -> list[dict[str, Any]]:
    sides = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1).tolist()
    entries = [{"category_id": c, "bbox": box} for c, box in zip(classes.tolist(), sides, strict=True)]
    if masks is not None:
        if masks.shape != (len(boxes), *size):
            raise ValueError(f"masks of shape {tuple(masks.shape)}, but {len(boxes)} boxes in an image of {size}")
        for entry, runs in zip(entries, encode_masks(masks), strict=True):
            entry["segmentation"] = runs
    if keypoints is not None:
        # COCO counts from the centre of the first pixel.
        points = (keypoints.double() - keypoints.new_tensor([0.5, 0.5, 0])).flatten(1)
        for entry, values in zip(entries, points.tolist(), strict=True):
            entry["keypoints"] = values
    return entries


def coco_datasets(records: Iterable[Record], classes: int, kind: Kind) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The annotations and the results as COCO's files have them: images are numbered from 0, objects from 1.

    A mask comes without its box, as otherwise the box's area would decide whether it is small or large.
    """
    images, real, found = [], [], []
    dropped = {"boxes": ("segmentation", "keypoints"), "masks": ("bbox", "keypoints"), "keypoints": ("segmentation",)}
    for number, entry in enumerate(records):
        images.append({"id": number, "height": entry.size[0], "width": entry.size[1]})
        real += [{**annotation, "image_id": number} for annotation in entry.real]
        kept = [{key: v for key, v in result.items() if key not in dropped[kind]} for result in entry.found]
        found += [{**result, "image_id": number} for result in kept]
    for number, annotation in enumerate(real, 1):
        annotation["id"] = number
    categories = [{"id": c, "name": str(c)} for c in range(classes)]
    return {"images": images, "annotations": real, "categories": categories}, found


def evaluate_coco(
    records: Iterable[Record], classes: int, kind: Kind = "boxes", sigmas: list[float] | None = None
) -> CocoResult:
    """COCO's numbers, average precision of each class and precision-recall curves.

    Args:
        records: of each image.
        classes: how many there are.
        kind: whose overlap counts; the records must have them.
        sigmas: how far each keypoint may be off, as a share of the object's scale; None: those of COCO's 17.

    Raises UserError without faster-coco-eval, or if there are not as many sigmas as keypoints.
    """
    real, found = coco_datasets(records, classes, kind)
    points = next((len(a["keypoints"]) // 3 for a in [*real["annotations"], *found] if "keypoints" in a), None)
    expected = COCO_KEYPOINTS if sigmas is None else len(sigmas)
    if kind == "keypoints" and points not in (None, expected):
        raise UserError(f"objects have {points} keypoints, and the metric has the sigmas of {expected}")
    truth = library("core.coco").COCO(real)
    evaluation = library("core.faster_eval_api").COCOeval_faster(
        truth, truth.loadRes(found), _IOU_TYPE[kind], print_function=_silent, kpt_oks_sigmas=sigmas
    )
    # The library leaves out classes without objects where it counts keypoints.
    evaluation.params.catIds = list(range(classes))
    evaluation.run()
    names = KEYPOINT_NUMBERS if kind == "keypoints" else NUMBERS
    numbers = _without(np.array(evaluation.stats[: len(names)], dtype=np.float64)).tolist()
    # Overlaps, recalls, classes; of all sizes, with the most detections.
    precision = _without(np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1])
    curves = [np.stack((evaluation.params.recThrs, precision[0, :, c])) for c in range(classes)]
    return CocoResult(dict(zip(names, numbers, strict=True)), precision.mean(1).T, curves)


def _silent(*words: object) -> None:
    """The library's messages go nowhere."""


def _without(values: np.ndarray) -> np.ndarray:
    """-1, the library's sign for nothing to measure, as NaN."""
    return np.where(values < 0, np.nan, values)
