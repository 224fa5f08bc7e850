"""PASCAL VOC's average precision, as Detectron2 computes it.

Pixels count inclusively (a box from 1 to 1 is one pixel wide), an overlap counts strictly above its threshold,
difficult objects are neither missed nor found, and scores are rounded to 3 decimals, boxes to 1.
"""

from dataclasses import dataclass

import numpy as np

from moco.transfer.detection.instances import Detections, Truth

THRESHOLDS = np.arange(50, 100, 5) / 100
"""Of the overlap: 0.50, 0.55, ... 0.95."""


@dataclass
class VocResult:
    """What was measured.

    Attributes:
        per_class: float64 (classes, 10), 0 to 1: average precision of each class at each of THRESHOLDS.
        curves: of each class recall and precision at 0.50 after each detection, float64 (2, detections).
    """

    per_class: np.ndarray
    curves: list[np.ndarray]

    @property
    def ap(self) -> float:
        """The mean over classes and thresholds, in percent. NaN as `average_precision` may be."""
        return float(100 * self.per_class.mean(0).mean())

    @property
    def ap50(self) -> float:
        """The mean over classes at 0.50, in percent: VOC's own metric."""
        return float(100 * self.per_class[:, 0].mean())

    @property
    def ap75(self) -> float:
        """The mean over classes at 0.75, in percent."""
        return float(100 * self.per_class[:, 5].mean())


@dataclass
class _Boxes:
    """Boxes of all images, by class and image: image (n,), class (n,), inclusive corners (n, 4), score or difficult."""

    image: np.ndarray
    label: np.ndarray
    corners: np.ndarray
    value: np.ndarray

    def of_class(self, label: int) -> "_Boxes":
        rows = self.label == label
        return _Boxes(self.image[rows], self.label[rows], self.corners[rows], self.value[rows])


def evaluate_voc(detections: list[Detections], truths: list[Truth], classes: int, eleven_points: bool) -> VocResult:
    """Average precision of each class at overlaps from 0.50 to 0.95.

    Args:
        detections, truths: of each image, boxes in continuous coordinates.
        classes: how many there are.
        eleven_points: VOC 2007's mean over 11 recalls; else the area under the curve, as from 2010 on.
    """
    found = _gather([(d.boxes, d.classes, d.scores) for d in detections])
    # As written to VOC's result files; a float32 times 1000 is exact in float64.
    corners = (found.corners.astype(np.float32) + np.array([1, 1, 0, 0], np.float32)).astype(np.float64)
    found.corners, found.value = np.rint(corners * 10) / 10, np.rint(found.value * 1000) / 1000
    real = _gather([(t.target.boxes, t.target.classes, t.difficult) for t in truths])
    real.corners += [1, 1, 0, 0]
    per_class, curves = np.zeros((classes, len(THRESHOLDS))), []
    for label in range(classes):
        own, objects = found.of_class(label), real.of_class(label)
        order = np.argsort(-own.value, kind="stable")
        overlap, match = _best_object(own, objects)
        hits = [_hits(overlap[order], match[order], objects.value.astype(bool), t) for t in THRESHOLDS]
        lines = [_curve(true, false, int((objects.value == 0).sum())) for true, false in hits]
        per_class[label] = [average_precision(*line, eleven_points) for line in lines]
        curves.append(np.stack(lines[0]))
    return VocResult(per_class, curves)


def _gather(images: list[tuple]) -> _Boxes:  # type: ignore[type-arg]
    counts = [len(boxes) for boxes, *_ in images]
    columns = [[part.cpu().numpy() for part in parts] for parts in zip(*images, strict=True)] or [[], [], []]
    corners = np.concatenate([np.zeros((0, 4)), *columns[0]])
    label, value = (np.concatenate([np.zeros(0), *column]) for column in columns[1:])
    return _Boxes(np.repeat(np.arange(len(counts)), counts), label, corners, value)


def _best_object(found: _Boxes, real: _Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection the largest overlap with an object of its image, (n,), and the first that has it; -inf, -1."""
    first = np.searchsorted(real.image, found.image, "left")
    count = np.searchsorted(real.image, found.image, "right") - first
    best, match = np.full(len(count), -np.inf), np.full(len(count), -1)
    rows = np.flatnonzero(count)
    if len(rows):
        # All pairs of an image, end to end.
        start = np.cumsum(count[rows]) - count[rows]
        place = np.arange(count.sum()) - np.repeat(start, count[rows])
        detection = np.repeat(rows, count[rows])
        other = first[detection] + place
        overlap = _overlap(found.corners[detection], real.corners[other])
        best[rows] = np.maximum.reduceat(overlap, start)
        match[rows] = np.minimum.reduceat(np.where(overlap == best[detection], other, len(real.image)), start)
    return best, match


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of inclusive boxes (n, 4)."""
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1, 0)
    common = sides[:, 0] * sides[:, 1]
    areas = [(box[:, 2] - box[:, 0] + 1) * (box[:, 3] - box[:, 1] + 1) for box in (a, b)]
    return np.asarray(common / (areas[0] + areas[1] - common))


def _hits(overlap: np.ndarray, match: np.ndarray, difficult: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Which detections, best first, are true and which false positives; that of a difficult object is neither."""
    over = overlap > threshold
    ignored = over.copy()
    ignored[over] = difficult[match[over]]
    candidates = np.flatnonzero(over & ~ignored)
    true = np.zeros(len(overlap), dtype=bool)
    true[candidates[np.unique(match[candidates], return_index=True)[1]]] = True  # the first of each object
    return [true, ~true & ~ignored]


def _curve(true: np.ndarray, false: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    hits = np.cumsum(true, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        recall = hits / np.float64(objects)
    return recall, hits / np.maximum(hits + np.cumsum(false), np.finfo(np.float64).eps)


def average_precision(recall: np.ndarray, precision: np.ndarray, eleven_points: bool) -> float:
    """Of one class: the mean of the best precision at 11 recalls, or the area under it over all recalls.

    NaN, as Detectron2's, for the area of a class without objects that has detections; without them it is 0.
    """
    if eleven_points:
        best = [precision[recall >= t].max(initial=0) for t in np.arange(0, 1.1, 0.1)]
        return float(sum(p / 11 for p in best))
    recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([0.0], precision, [0.0]))[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * envelope[steps + 1]).sum())
