"""What is measured on a set is the metric of all its images, whichever rank, process and batch detected in them."""

import json
import math

import numpy as np
import pytest
from torchvision.models import resnet18

from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.shapes import DrawnImages
from moco.transfer.detection.evaluation.coco import evaluate_coco, record
from moco.transfer.detection.evaluation.evaluate import evaluate_detector
from moco.transfer.detection.evaluation.evaluation import Evaluation, read_evaluation, thinned
from moco.transfer.detection.evaluation.voc import evaluate_voc
from moco.transfer.detection.structures import build_detector
from tests.ranks import on_ranks
from tests.transfer.detection.evaluation.two_ranks import results
from tests.transfer.detection.oracle import Numbered, Oracle, found_in, truth_of

CPU = choose_device("cpu", "fp32", channels_last=False)
N = 23


def evaluate(detector=None, images=None, metric="voc", **settings) -> Evaluation:
    images = Numbered(range(N)) if images is None else images
    return evaluate_detector(detector or Oracle(), images, CPU, metric=metric, **{"side": 30, **settings})


@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_voc_s_metrics_over_the_classes_with_objects(metric):
    found = evaluate(metric=metric)
    expected = evaluate_voc([found_in(i) for i in range(N)], [truth_of(i) for i in range(N)], 3, metric == "voc07")
    assert found.numbers["AP"] == pytest.approx(100 * expected.per_class[:2].mean())
    assert found.numbers["AP50"] == pytest.approx(100 * expected.per_class[:2, 0].mean())
    assert found.numbers["AP75"] == pytest.approx(100 * expected.per_class[:2, 5].mean())
    assert 0 < found.numbers["AP"] < found.numbers["AP50"] < 100
    difficult = sum(int(truth_of(i).difficult.sum()) for i in range(N))
    assert sum(each.objects for each in found.per_class) == sum(i % 4 for i in range(N)) - difficult
    assert found.per_class[0].numbers["AP50"] == pytest.approx(100 * expected.per_class[0, 0])
    assert math.isnan(found.per_class[2].numbers["AP"])
    assert np.array_equal(found.per_class[0].curves[""], expected.curves[0])
    assert (found.images, found.unreadable, found.classes) == (N, 0, ["cat", "dog", "unicorn"])


def test_coco_s_metrics_of_boxes_masks_and_keypoints():
    found = evaluate(metric="coco")
    records = [record(found_in(i), truth_of(i)) for i in range(N)]
    for kind, prefix in (("boxes", ""), ("masks", "mask "), ("keypoints", "keypoint ")):
        expected = evaluate_coco(records, 3, kind)
        for name, value in expected.numbers.items():
            assert found.numbers[prefix + name] == pytest.approx(100 * value, nan_ok=True), prefix + name
        assert found.per_class[1].numbers[f"{prefix}AP50"] == pytest.approx(100 * expected.per_class[1, 0])
        assert 0 < found.numbers[f"{prefix}AP"] < 100
        assert np.array_equal(found.per_class[1].curves[prefix], expected.curves[1])
    crowds = sum(int(truth_of(i).crowd.sum()) for i in range(N))
    assert sum(each.objects for each in found.per_class) == sum(i % 4 for i in range(N)) - crowds


@pytest.mark.parametrize("detector", [(True, 17), (False, 0)])
@pytest.mark.parametrize("images", [(True, 17), (False, 0)])
def test_what_only_the_set_or_only_the_detector_has_is_not_measured(detector, images):
    found = evaluate(Oracle(*detector), Numbered(range(8), *images), "coco")
    both = detector == images == (True, 17)
    assert ("mask AP" in found.numbers, "keypoint AP" in found.numbers) == (both, both)
    assert found.numbers["AP"] > 0


def test_other_keypoints_are_measured_with_their_sigmas_alone(caplog):
    images = Numbered(range(8), points=5)
    assert "keypoint AP" not in evaluate(Oracle(points=5), images, "coco").numbers
    assert "objects have 5, and the metric has the sigmas of 17" in caplog.text
    assert evaluate(Oracle(points=5), images, "coco", sigmas=[0.1] * 5).numbers["keypoint AP"] > 0


def test_workers_and_batches_change_nothing_and_sides_are_as_wanted():
    detector = Oracle()
    one = evaluate(detector, Numbered(range(9)), "coco", side=20, maximum=28)
    assert detector.seen[0] == (19, 28)  # of 40 x 60
    assert detector.seen[6] == (20, 26)  # of 41 x 54
    detector.train()
    seen = []
    many = evaluate(detector, Numbered(range(9)), "coco", batch=4, workers=1, progress=lambda n: seen.extend(n) or n)
    assert many.to_dict() == one.to_dict()
    assert seen == list(range(9))
    assert detector.training


def test_broken_images_are_left_out_and_counted(caplog):
    found = evaluate(images=Numbered(range(N), broken=[4, 7]), batch=2)
    whole = evaluate(images=Numbered([i for i in range(N) if i not in (4, 7)]))
    assert (found.images, found.unreadable) == (N - 2, 2)
    assert found.numbers == whole.numbers
    assert "without 2 of 23 test images, which cannot be read: folder/4.png: cannot be decoded" in caplog.text
    with pytest.raises(UserError, match=r"none of 2 test images can be read: folder/4\.png"):
        evaluate(images=Numbered([4, 7], broken=[4, 7]))
    with pytest.raises(UserError, match="no test images"):
        evaluate(images=Numbered([]))


@pytest.mark.parametrize("metric", ["voc", "coco"])
def test_without_objects_there_is_nothing_to_measure(metric):
    found = evaluate(images=Numbered([0, 4, 8]), metric=metric)
    assert math.isnan(found.numbers["AP"])
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["numbers"]["AP50"] is None


@pytest.mark.parametrize("metric", ["voc07", "coco"])
def test_json_and_back(metric, tmp_path):
    found = evaluate(metric=metric)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(found.to_dict(), allow_nan=False))
    again = read_evaluation(path)
    assert again.to_dict() == found.to_dict()
    assert again.numbers == pytest.approx(found.numbers, nan_ok=True)
    kinds = ["", "mask ", "keypoint "] if metric == "coco" else [""]
    assert list(again.per_class[0].curves) == list(found.per_class[0].curves) == kinds
    for kind, curve in found.per_class[0].curves.items():
        assert np.allclose(again.per_class[0].curves[kind], curve, atol=1e-4, equal_nan=True)
    for text in ("{", "[]", '{"images": 3}'):
        path.write_text(text)
        with pytest.raises(UserError, match="holds no results of a detector"):
            read_evaluation(path)


def test_a_long_curve_keeps_its_ends():
    curve = np.stack((np.linspace(0, 1, 5001), np.linspace(1, 0.2, 5001)))
    short = thinned(curve)
    assert short.shape == (2, 200)
    assert short[:, [0, -1]].tolist() == curve[:, [0, -1]].tolist()


@pytest.mark.parametrize(
    ("structure", "widths", "precision"),
    [
        ("c4", {"masks": True, "mask_width": 8}, "fp32"),
        ("dc5", {"width": 16}, "bf16"),
        ("fpn", {"masks": True, "pyramid": 8, "convs": 8, "width": 16, "mask_convs": 8}, "bf16"),
    ],
)
def test_every_structure_is_evaluated_on_drawn_images(structure, widths, precision):
    detector = build_detector(structure, resnet18(), 10, **widths)
    detector.rpn.limits.after_nms = 8
    device = choose_device("cpu", precision, channels_last=False)
    found = evaluate_detector(detector, DrawnImages(range(2), 64), device, metric="coco", side=64)
    assert found.images == 2
    assert ("mask AP" in found.numbers) == (structure != "dc5")
    assert found.numbers["AP"] >= 0


@pytest.mark.slow
def test_two_ranks_measure_what_one_does_and_all_of_them_know_it(tmp_path):
    on_ranks(2, "tests.transfer.detection.evaluation.two_ranks", tmp_path / "results.json")
    one, every = results(), json.loads((tmp_path / "results.json").read_text())
    assert every == [one, one]
    assert one[0]["images"] == 22
    assert one[-1].startswith("nothing to evaluate")
