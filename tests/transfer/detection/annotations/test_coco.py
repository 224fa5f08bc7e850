import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco.runs.config import Encoder
from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.coco import open_coco
from moco.transfer.detection.config import DetectionConfig, DetectionSchedule, Model
from moco.transfer.detection.evaluation.coco import evaluate_coco, record
from moco.transfer.detection.instances import Detections
from moco.transfer.detection.task import DetectionTask

SQUARE = [[5, 5, 25, 5, 25, 25, 5, 25]]
COLUMN = {"size": [40, 60], "counts": [0, 80, 2320]}
"""The two leftmost columns."""


def annotation(image: int = 1, category: int = 3, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image, "category_id": category, "bbox": [5, 5, 20, 20], "area": 390.5, **more}


def write(
    folder: Path,
    annotations: list[dict[str, Any]],
    name: str = "train.json",
    images: int = 2,
    categories: dict[int, str] | None = None,
) -> Path:
    """A file of annotations beside a folder of images, numbered from 1."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = categories or {7: "dog", 3: "cat"}
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(1, images + 1)],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
        "annotations": annotations,
    }
    for image in data["images"]:
        Image.new("RGB", (60, 40), "grey").save(folder / "images" / image["file_name"])
    (folder / name).write_text(json.dumps(data))
    return folder / name


def test_boxes_categories_with_gaps_polygons_and_areas(tmp_path):
    path = write(tmp_path, [annotation(segmentation=SQUARE), annotation(category=7, segmentation=SQUARE)])
    train, test = open_coco(path)
    assert test is None
    assert train.classes == ["cat", "dog"]
    target = train.target(0)
    assert target.boxes.tolist() == [[5, 5, 25, 25]] * 2
    assert target.classes.tolist() == [0, 1]
    assert [[p.tolist() for p in mask] for mask in target.masks] == [SQUARE, SQUARE]
    assert train.truth(0).area.tolist() == [390.5, 390.5]
    assert (len(train), len(train.target(1)), train.with_objects().tolist()) == (2, 0, [0])
    assert train.image(1).shape == (3, 40, 60)


def test_a_crowd_is_in_the_truth_alone_and_makes_its_masks_bitmaps(tmp_path):
    crowd = annotation(iscrowd=1, bbox=[0, 0, 2, 40], segmentation=COLUMN)
    train, _ = open_coco(write(tmp_path, [annotation(segmentation=SQUARE), crowd]))
    truth = train.truth(0)
    assert truth.crowd.tolist() == [False, True]
    assert truth.target.masks.shape == (2, 40, 60)
    assert truth.target.masks[1].sum() == 80
    assert truth.target.masks[1, :, :2].all()
    assert len(train.target(0)) == 1
    assert isinstance(train.target(0).masks, list)
    found = Detections(truth.target.boxes[:1], torch.ones(1), torch.tensor([0]), truth.target.masks[:1])
    assert evaluate_coco([record(found, truth)], 2, "masks").ap == pytest.approx(100)


def test_run_lengths_are_trained_on_as_bitmaps(tmp_path):
    given = [annotation(segmentation=COLUMN, area=None), annotation(segmentation=SQUARE, area=None)]
    train, _ = open_coco(write(tmp_path, given))
    assert train.target(0).masks.sum((1, 2)).tolist() == [80, 400]
    assert train.truth(0).area.tolist() == [80, 400]


def test_keypoints_move_by_half_a_pixel_and_change_sides_in_the_mirror(tmp_path):
    path = write(tmp_path, [annotation(keypoints=[10, 12, 2, 0, 0, 0, 20, 22, 1]), annotation()])
    data = json.loads(path.read_text())
    data["categories"][1]["keypoints"] = ["nose", "left_eye", "right_eye"]
    path.write_text(json.dumps(data))
    train, _ = open_coco(path)
    assert train.flipped_keypoints == [0, 2, 1]
    assert train.target(0).keypoints.tolist() == [[[10.5, 12.5, 2], [0, 0, 0], [20.5, 22.5, 1]], [[0, 0, 0]] * 3]


def test_images_with_a_visible_keypoint(tmp_path):
    """As Detectron2 counts them: hidden ones (1) too, in all annotations of an image, of which one is no crowd."""
    path = write(
        tmp_path,
        [
            annotation(1, keypoints=[10, 12, 2]),
            annotation(2, keypoints=[10, 12, 1]),
            annotation(3, keypoints=[10, 12, 0]),
            annotation(4),
            annotation(5, keypoints=[10, 12, 0]),
            annotation(5, keypoints=[10, 12, 2]),
            annotation(6, keypoints=[10, 12, 2], iscrowd=1),
        ],
        images=7,
    )
    data = json.loads(path.read_text())
    data["categories"][1]["keypoints"] = ["nose"]
    path.write_text(json.dumps(data))
    train, _ = open_coco(path)
    assert train.with_objects().tolist() == [0, 1, 2, 3, 4]
    assert train.with_objects(keypoints=True).tolist() == [0, 1, 4]


def skips(caplog: pytest.LogCaptureFixture) -> list[str]:
    return sorted(r.getMessage().partition("skipped ")[2].partition(" (the first")[0] for r in caplog.records)


def test_bad_boxes_and_annotations_without_image_are_counted(tmp_path, caplog):
    nan = float("nan")
    boxes = [
        [60, 0, 5, 5],
        [5, 5, -3, 5],
        [5, 5, 0, 5],
        [nan, 5, 5, 5],
        [5, 5, 5],
        None,
        ["a", 1, 1, 1],
        [50, 30, 99, 99],
    ]
    given = [annotation(bbox=box) for box in boxes]
    del given[5]["bbox"]
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_coco(write(tmp_path, [*given, annotation(image=99)]))
    assert train.target(0).boxes.tolist() == [[50, 30, 60, 40]]
    assert skips(caplog) == [
        "1 annotations without an image",
        "1 boxes outside their image",
        "1 boxes that are not finite",
        "1 boxes without area",
        "1 reversed boxes",
        "3 objects without a box of four numbers",
    ]


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ({"size": [40, 50], "counts": [0, 80, 1920]}, "1 masks of another size than their image"),
        ({"size": [40, 60], "counts": [0, 80]}, "1 masks whose run lengths are damaged"),
        ({"size": [40, 60], "counts": "\x01 "}, "1 masks whose run lengths are damaged"),
        ({"size": "none"}, "1 masks whose run lengths are damaged"),
        ([[1, 2, 3, 4]], "1 polygons that are not three or more finite points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "1 polygons that are not three or more finite points"),
        ("polygon", "1 polygons that are not three or more finite points"),
    ],
)
def test_bad_masks_are_counted_and_their_objects_skipped(tmp_path, caplog, segmentation, kind):
    given = [annotation(segmentation=SQUARE), annotation(segmentation=SQUARE), annotation(segmentation=segmentation)]
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_coco(write(tmp_path, given))
    assert len(train.target(0)) == 2
    assert skips(caplog) == sorted([kind, "1 objects without a mask, as most have one"])


def test_few_masks_among_many_boxes_are_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_coco(write(tmp_path, [annotation(), annotation(), annotation(segmentation=SQUARE)]))
    assert len(train.target(0)) == 3
    assert train.target(0).masks is None
    assert skips(caplog) == ["1 masks, as most objects have none"]


def test_where_masks_are_not_wanted_objects_without_one_are_trained_on(tmp_path, caplog):
    path = write(tmp_path, [annotation(segmentation=SQUARE, area=None), annotation(segmentation=SQUARE), annotation(2)])
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_coco(path, masks=False)
    assert [len(train.target(i)) for i in (0, 1)] == [2, 1]
    assert train.with_objects().tolist() == [0, 1]
    assert train.target(0).masks is None
    assert train.truth(0).area.tolist() == [400, 390.5]  # of the mask all the same
    assert skips(caplog) == []


def test_bad_keypoints_are_counted(tmp_path, caplog):
    path = write(tmp_path, [annotation(keypoints=[1, 2]), annotation(keypoints=[1, float("nan"), 2])])
    data = json.loads(path.read_text())
    data["categories"][1]["keypoints"] = ["nose"]
    path.write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_coco(path)
    assert len(train.target(0)) == 2
    assert skips(caplog) == ["2 keypoints that are not 1 of three finite numbers"]


def test_an_unknown_category_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.json: annotation 1: unknown category 5 \(.* are 3, 7\)"):
        open_coco(write(tmp_path, [annotation(category=5)]))
    write(tmp_path, [], "val.json", categories={1: "cow"})
    with pytest.raises(UserError, match=r"val\.json: unknown class 'cow'.*the classes are cat, dog"):
        open_coco(write(tmp_path, [annotation()]))


def test_categories_of_the_test_images_are_known_by_their_names(tmp_path):
    write(tmp_path, [annotation(category=1)], "val.json", categories={1: "dog"})
    _, test = open_coco(write(tmp_path, [annotation()]))
    assert test.target(0).classes.tolist() == [1]
    assert test.classes == ["cat", "dog"]


def test_a_missing_image_is_counted_with_its_annotations(tmp_path, caplog):
    path = write(tmp_path, [annotation(), annotation(image=2)])
    (tmp_path / "images" / "2.png").unlink()
    with caplog.at_level(logging.WARNING, "moco"):
        assert len(open_coco(path)[0]) == 1
    assert skips(caplog) == ["1 annotations without an image", "1 images whose file is missing, with their annotations"]
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(UserError, match=r"its images are not found: 1\.png is in none of"):
        open_coco(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1', "no whole JSON"),
        ("\xff", "no whole JSON"),
        ("[]", 'no list of "images"'),
        ('{"images": [], "categories": [1], "annotations": []}', 'entry of "categories" is no object'),
        ('{"images": [{"id": 1}], "categories": [], "annotations": []}', 'has no "file_name"'),
        ('{"images": [], "categories": [{"id": "a"}], "annotations": []}', "whole numbers"),
        ('{"images": [], "categories": [{"id": 1}], "annotations": []}', "it lists none"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "train.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as error:
        open_coco(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ("train.json", "val.json"),
        ("train.json", "test.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("my_train.json", "my_val.json"),
        ("all.json", None),
    ],
)
def test_which_file_is_for_what(tmp_path, train, test):
    for name, image in ((train, 1), (test, 2)):
        if name:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(tmp_path, [annotation(image)], name)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    for path in (tmp_path, tmp_path / train):
        first, second = open_coco(path)
        assert first.with_objects().tolist() == [0]
        assert (second is None) == (test is None)
        assert second is None or second.with_objects().tolist() == [1]


def test_keypoints_are_in_a_file_of_their_own(tmp_path):
    (tmp_path / "annotations").mkdir()
    write(tmp_path, [annotation(1)], "annotations/instances_train2017.json")
    write(tmp_path, [annotation(2)], "annotations/person_keypoints_train2017.json")
    write(tmp_path, [annotation(2)], "annotations/person_keypoints_val2017.json")
    assert open_coco(tmp_path)[0].with_objects().tolist() == [0]
    assert open_coco(tmp_path, keypoints=True)[0].with_objects().tolist() == [1]
    assert open_coco(tmp_path)[1] is None
    assert open_coco(tmp_path, keypoints=True)[1].with_objects().tolist() == [1]


def test_two_files_to_train_on_are_refused(tmp_path):
    write(tmp_path, [], "a_train.json")
    write(tmp_path, [], "b_train.json")
    with pytest.raises(UserError, match=r"not clear \(a_train.json, b_train.json\): give it as coco:FILE"):
        open_coco(tmp_path)


@pytest.mark.parametrize("structure", ["c4", "fpn"])
def test_a_thousand_objects_in_one_image(tmp_path, structure):
    """They are read, matched to anchors and proposals, and trained on."""
    places = [(i % 40, i % 21) for i in range(1000)]
    objects = [
        annotation(category=(3, 7)[i % 2], bbox=[x, y, 20, 19], segmentation=[[x, y, x + 20, y, x + 20, y + 19]])
        for i, (x, y) in enumerate(places)
    ]
    train, _ = open_coco(write(tmp_path, objects))
    assert train.target(0).boxes[:, :2].tolist() == [[x, y] for x, y in places]
    assert np.allclose(train.truth(0).area, 390.5)
    config = DetectionConfig(
        encoder=Encoder("resnet18w0.125"),
        model=Model(structure, masks=True, head_width=0.05, regions=64),
        training=DetectionSchedule(sides=(64,)),
    )
    task = DetectionTask(config, train, train)
    image, target = task.read(0, 0)
    assert (image.shape, len(target)) == ((3, 64, 96), 1000)
    losses = task.losses([(image, target)], torch.device("cpu"))
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"} <= set(losses)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())
