import contextlib
import io

import numpy as np
import pytest
import torch

from moco.runtime.errors import UserError
from moco.transfer.detection.evaluation.coco import (
    KEYPOINT_NUMBERS,
    NUMBERS,
    Record,
    coco_datasets,
    evaluate_coco,
    record,
)
from moco.transfer.detection.instances import Detections, Target, Truth
from tests.transfer.detection.reference_numbers import evaluation

REFERENCE = evaluation("coco_eval")
SETS = sorted({key.split("_")[0] for key in REFERENCE})


def records(name: str) -> list[Record]:
    gt, dt, real_masks, found_masks, area = (
        torch.from_numpy(REFERENCE[f"{name}_{key}"]) for key in ("gt", "dt", "gt_masks", "dt_masks", "gt_area")
    )
    images = []
    for i in range(int(REFERENCE[f"{name}_nimg"])):
        own, real = dt[:, 0] == i, gt[:, 0] == i
        found = Detections(dt[own, 3:], dt[own, 2], dt[own, 1].long(), found_masks[own])
        target = Target(gt[real, 2:6].float(), gt[real, 1].long(), real_masks[real])
        truth = Truth(target, torch.zeros(len(target)).bool(), gt[real, 6].bool(), area[real], real_masks.shape[1:])
        images.append(record(found, truth))
    return images


@pytest.mark.parametrize(("kind", "key"), [("boxes", "bbox"), ("masks", "segm")])
@pytest.mark.parametrize("name", SETS)
def test_every_set_has_pycocotools_numbers(name, kind, key):
    result = evaluate_coco(records(name), len(REFERENCE[f"{name}_{key}_ap_per_class"]), kind)
    expected = REFERENCE[f"{name}_{key}_stats"]
    assert list(result.numbers) == list(NUMBERS)
    assert np.allclose(list(result.numbers.values()), np.where(expected < 0, np.nan, expected), 0, 1e-12, True)
    per_class = REFERENCE[f"{name}_{key}_ap_per_class"]
    assert np.allclose(result.per_class.mean(1), np.where(per_class < 0, np.nan, per_class), 0, 1e-12, True)
    curve = REFERENCE[f"{name}_{key}_precision_ap50_class0"]
    assert np.allclose(result.curves[0][1], np.where(curve < 0, np.nan, curve), 0, 1e-12, True)


def people(points: int = 17, generator_seed: int = 0) -> list[Record]:
    """Random people, one of them a crowd and one without a keypoint, found with errors of several pixels."""
    generator = torch.Generator().manual_seed(generator_seed)
    images = []
    for i in range(4):
        corners = torch.rand(5, 2, generator=generator) * 100
        sides = torch.rand(5, 2, generator=generator) * 90 + 40
        boxes = torch.cat((corners, corners + sides), 1)
        keypoints = torch.cat(
            (
                corners[:, None] + torch.rand(5, points, 2, generator=generator) * sides[:, None],
                torch.randint(0, 3, (5, points, 1), generator=generator).float(),
            ),
            2,
        )
        keypoints[1, :, 2] = 0
        crowd = torch.tensor([False, False, False, i == 0, False])
        truth = Truth(
            Target(boxes, torch.tensor([0, 0, 1, 0, 0]), None, keypoints),
            torch.zeros(5).bool(),
            crowd,
            sides.prod(1).double() * 0.6,
            (240, 240),
        )
        moved = keypoints + torch.randn(5, points, 3, generator=generator) * torch.tensor([4.0, 4, 0])
        scores = torch.rand(5, generator=generator).sort(descending=True).values
        images.append(record(Detections(boxes, scores, truth.target.classes, None, moved), truth))
    return images


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_keypoints_have_pycocotools_numbers(seed):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = people(generator_seed=seed)
    result = evaluate_coco(images, 3, "keypoints")
    real, found = coco_datasets(images, 3, "keypoints")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, **real}
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(found), "keypoints")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert list(result.numbers) == list(KEYPOINT_NUMBERS)
    assert 0 < result.numbers["AP"] < 1
    expected = np.where(reference.stats < 0, np.nan, reference.stats)
    assert np.allclose(list(result.numbers.values()), expected, 0, 1e-12, equal_nan=True)
    assert np.isnan(result.per_class[2]).all()  # no such object


def test_keypoints_of_another_number_need_their_sigmas():
    with pytest.raises(UserError, match=r"5 keypoints.*sigmas of 17"):
        evaluate_coco(people(5), 2, "keypoints")
    assert evaluate_coco(people(5), 2, "keypoints", [0.1] * 5).ap > 0


def test_a_keypoint_is_written_half_a_pixel_back():
    keypoints = torch.tensor([[[10.5, 20.5, 2.0]]])
    target = Target(torch.tensor([[0.0, 0, 30, 30]]), torch.tensor([0]), None, keypoints)
    truth = Truth(target, torch.zeros(1).bool(), torch.zeros(1).bool(), torch.tensor([900.0]).double(), (30, 30))
    found = Detections(target.boxes, torch.ones(1), target.classes, None, keypoints)
    assert record(found, truth).found[0]["keypoints"] == [10, 20, 2]
    assert record(found, truth).real[0]["keypoints"] == [10, 20, 2]


def test_without_detections_the_numbers_are_0_and_without_objects_there_are_none():
    images = records("set0")
    for image in images:
        image.found = []
    assert evaluate_coco(images, 3).ap == 0
    for image in images:
        image.real = []
    assert np.isnan(evaluate_coco(images, 3).ap)


def test_polygons_of_the_truth_are_drawn():
    square = np.array([2.0, 2, 8, 2, 8, 8, 2, 8])
    target = Target(torch.tensor([[2.0, 2, 8, 8]]), torch.tensor([0]), [[square]])
    truth = Truth(target, torch.zeros(1).bool(), torch.zeros(1).bool(), torch.tensor([36.0]).double(), (10, 12))
    mask = torch.zeros(1, 10, 12, dtype=torch.bool)
    mask[:, 2:8, 2:8] = True
    found = Detections(target.boxes, torch.ones(1), target.classes, mask)
    assert evaluate_coco([record(found, truth)], 1, "masks").ap == pytest.approx(100)
    with pytest.raises(ValueError, match="masks of shape"):
        record(Detections(target.boxes, torch.ones(1), target.classes, mask[:, :9]), truth)
