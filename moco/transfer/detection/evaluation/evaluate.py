"""A detector evaluated on a set of images by all ranks together: VOC's metrics, or COCO's."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather_objects, on_main, rank, world_size
from moco.transfer.detection.dataset import DetectionSet
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.evaluation.coco import (
    COCO_KEYPOINTS,
    CocoResult,
    Kind,
    Record,
    annotated,
    detected,
    evaluate_coco,
)
from moco.transfer.detection.evaluation.evaluation import ClassResult, Evaluation, Metric, thinned
from moco.transfer.detection.evaluation.voc import evaluate_voc
from moco.transfer.detection.inference import infer
from moco.transfer.detection.instances import Detections, Target, Truth
from moco.transfer.detection.masks import library

log = logging.getLogger("moco")

PREFIX: dict[Kind, str] = {"boxes": "", "masks": "mask ", "keypoints": "keypoint "}
"""Of the names of numbers."""


def evaluate_detector(
    detector: Detector,
    images: DetectionSet,
    device: Device,
    *,
    metric: Metric,
    side: int,
    maximum: int = 1333,
    batch: int = 1,
    workers: int | None = 0,
    progress: Callable[[list[int]], Iterable[int]] = iter,
    sigmas: list[float] | None = None,
) -> Evaluation:
    """Measures a detector; called on all ranks, which share the images and all have the result.

    It is the same whatever the number of ranks: each image counts once. An image that cannot be read is left out, and
    counted in the log. The means are over the classes that have objects; with objects of every class they are
    Detectron2's.

    Args:
        detector: on the device; `detector.num_classes` are the set's classes.
        metric: "voc07": average precision at 11 recalls (VOC 2007); "voc": the area under the curve (VOC from 2010 on,
            and one's own images); "coco": COCO's, also of masks and keypoints where detector and set have them.
        side, maximum, batch, workers: as in `infer`.
        progress: wraps the numbers of this rank's images.
        sigmas: how far each keypoint may be off, as a share of the object's scale; None: those of COCO's 17. Without
            sigmas of an object's keypoints these are not measured.

    Raises UserError if no image can be read; with "coco" also without faster-coco-eval.
    """
    measure: _Measure = _Coco(detector, images.classes, sigmas) if metric == "coco" else _Voc(images.classes, metric)
    numbers = list(range(rank(), len(images), world_size()))
    kept, errors = {}, []
    found = infer(
        detector,
        _Reader(images, measure),
        progress(numbers),
        device,
        lambda number, error: errors.append((number, error)),
        side=side,
        maximum=maximum,
        batch=batch,
        workers=workers,
    )
    for number, (size, real), detections in found:
        kept[number] = measure.pair(detections, size, real)
    # In the set's order, since that decides between detections of one score.
    entries = sorted((entry for share in gather_objects(kept) for entry in share.items()), key=lambda entry: entry[0])
    unreadable = sorted(error for share in gather_objects(errors) for error in share)
    return on_main(lambda: _measured(measure, [entry for _, entry in entries], [error for _, error in unreadable]))


def _measured(measure: "_Measure", entries: list[Any], unreadable: list[str]) -> Evaluation:
    if not entries:
        reason = (
            f"none of {len(unreadable)} test images can be read: {unreadable[0]}" if unreadable else "no test images"
        )
        raise UserError(f"nothing to evaluate: {reason}")
    if unreadable:
        count, total = len(unreadable), len(unreadable) + len(entries)
        log.warning("evaluated without %d of %d test images, which cannot be read: %s", count, total, unreadable[0])
    evaluation = measure.all(entries)
    evaluation.unreadable = len(unreadable)
    return evaluation


class _Measure(Protocol):
    """What a metric keeps of each image, without tensors, and the metric."""

    def real(self, truth: Truth) -> Any:
        """Of what is annotated."""
        ...

    def pair(self, detections: Detections, size: tuple[int, int], real: Any) -> Any:
        """Of what is found beside it."""
        ...

    def all(self, pairs: list[Any]) -> Evaluation:
        """The metric of all images."""
        ...


class _Reader:
    """An image, and its size and objects as a metric keeps them."""

    def __init__(self, images: DetectionSet, measure: _Measure) -> None:
        self.images, self.measure = images, measure

    def __call__(self, number: int) -> tuple[Tensor, tuple[tuple[int, int], Any]]:
        image, truth = self.images.image(number), self.images.truth(number)
        return image, (truth.size, self.measure.real(truth))


class _Voc:
    def __init__(self, classes: list[str], metric: Metric) -> None:
        self.classes, self.metric = classes, metric

    def real(self, truth: Truth) -> list[np.ndarray]:
        return [column.numpy() for column in (truth.target.boxes, truth.target.classes, truth.difficult)]

    def pair(
        self, detections: Detections, size: tuple[int, int], real: list[np.ndarray]
    ) -> tuple[tuple[int, int], list[np.ndarray], list[np.ndarray]]:
        columns = (detections.boxes, detections.scores, detections.classes)
        return size, real, [column.cpu().numpy() for column in columns]

    def all(self, pairs: list[Any]) -> Evaluation:
        detections = [Detections(*map(torch.from_numpy, found)) for _, _, found in pairs]
        truths = [_truth(size, *map(torch.from_numpy, real)) for size, real, _ in pairs]
        count = len(self.classes)
        result = evaluate_voc(detections, truths, count, self.metric == "voc07")
        labels = torch.cat([truth.target.classes[~truth.difficult] for truth in truths])
        objects = torch.bincount(labels, minlength=count).tolist()
        values = 100 * np.where(np.array(objects)[:, None] > 0, result.per_class, np.nan)  # (classes, overlaps)
        shown = {"AP": values.mean(1), "AP50": values[:, 0], "AP75": values[:, 5]}
        per_class = [
            ClassResult(name, objects[c], {k: float(shown[k][c]) for k in ("AP", "AP50")}, {"": thinned(line)})
            for c, (name, line) in enumerate(zip(self.classes, result.curves, strict=True))
        ]
        some = any(objects)
        numbers = {name: float(np.nanmean(column)) if some else float("nan") for name, column in shown.items()}
        return Evaluation(self.metric, len(pairs), 0, numbers, per_class)


def _truth(size: tuple[int, int], boxes: Tensor, classes: Tensor, difficult: Tensor) -> Truth:
    """Without what VOC's metric does not read."""
    none = torch.zeros(len(boxes))
    return Truth(Target(boxes, classes), difficult, none.bool(), none.double(), size)


class _Coco:
    def __init__(self, detector: Detector, classes: list[str], sigmas: list[float] | None) -> None:
        self.masks, self.keypoints = detector.mask_head is not None, detector.keypoint_head is not None
        self.classes, self.sigmas = classes, sigmas
        library("core.mask")  # its absence is no fault of each image

    def real(self, truth: Truth) -> list[dict[str, Any]]:
        masks = truth.target.masks if self.masks else None
        keypoints = truth.target.keypoints if self.keypoints else None
        return annotated(replace(truth, target=replace(truth.target, masks=masks, keypoints=keypoints)))

    def pair(self, detections: Detections, size: tuple[int, int], real: list[dict[str, Any]]) -> Record:
        masks = detections.masks if not real or "segmentation" in real[0] else None  # others are never compared
        return Record(size, detected(replace(detections, masks=masks), size), real)

    def all(self, pairs: list[Record]) -> Evaluation:
        results = {kind: evaluate_coco(pairs, len(self.classes), kind, self.sigmas) for kind in self._kinds(pairs)}
        objects = np.zeros(len(self.classes), dtype=np.int64)
        for entry in (entry for pair in pairs for entry in pair.real if not entry["iscrowd"]):
            objects[entry["category_id"]] += 1
        numbers = {
            PREFIX[kind] + name: 100 * value
            for kind, result in results.items()
            for name, value in result.numbers.items()
        }
        per_class = [
            ClassResult(
                name,
                int(objects[c]),
                _of_class(results, c),
                {PREFIX[kind]: thinned(result.curves[c]) for kind, result in results.items()},
            )
            for c, name in enumerate(self.classes)
        ]
        return Evaluation("coco", len(pairs), 0, numbers, per_class)

    def _kinds(self, pairs: list[Record]) -> list[Kind]:
        """What both detector and set have."""
        entries = [entry for pair in pairs for entry in pair.real]
        kinds: list[Kind] = ["boxes"]
        if self.masks and any("segmentation" in entry for entry in entries):
            kinds.append("masks")
        points = next((len(entry["keypoints"]) // 3 for entry in entries if "keypoints" in entry), None)
        expected = COCO_KEYPOINTS if self.sigmas is None else len(self.sigmas)
        if self.keypoints and points == expected:
            kinds.append("keypoints")
        elif self.keypoints and points is not None:
            log.warning(
                "keypoints are not measured: objects have %d, and the metric has the sigmas of %d", points, expected
            )
        return kinds


def _of_class(results: dict[Kind, CocoResult], label: int) -> dict[str, float]:
    """AP and AP50 of a class, in per cent."""
    return {
        PREFIX[kind] + name: float(100 * value)
        for kind, result in results.items()
        for name, value in (("AP", result.per_class[label].mean()), ("AP50", result.per_class[label, 0]))
    }
