import numpy as np
import pytest
import torch
from PIL import Image

from moco.transfer.detection.instances import Detections, Target
from moco.transfer.detection.pictures import colour, draw_beside_truth, draw_objects, draw_precision_recall

BOXES = torch.tensor([[10.0, 20, 30, 40], [32, 2, 60, 18]])
SQUARE = np.array([10.0, 20, 30, 20, 30, 40, 10, 40])
CLASSES = ["cat", "dog"]
GREY = torch.full((3, 50, 64), 100, dtype=torch.uint8)


def pixel(picture: Image.Image, x: float, y: float) -> tuple[int, ...]:
    """At a place of the image, whose longer side is 64 pixels."""
    scale = picture.width / 64
    return picture.getpixel((round(x * scale), round(y * scale)))


@pytest.mark.parametrize("bitmaps", [False, True])
def test_masks_are_tinted_and_boxes_have_the_colour_of_their_class(bitmaps):
    drawn = torch.zeros(2, 50, 64, dtype=torch.bool)
    drawn[0, 20:40, 10:30] = True
    target = Target(BOXES, torch.tensor([0, 1]), drawn if bitmaps else [[SQUARE], []])
    picture = draw_objects(GREY, target, CLASSES)
    assert picture.size == (320, 250)
    tinted = [round(0.6 * 100 + 0.4 * part) for part in colour(0)]
    assert np.allclose(pixel(picture, 20, 35), tinted, atol=2)
    assert pixel(picture, 10, 30) == colour(0)  # an edge
    assert pixel(picture, 32, 14) == colour(1)
    assert pixel(picture, 46, 15) == (100, 100, 100)  # the second has no mask
    assert pixel(picture, 40, 45) == (100, 100, 100)


def test_detections_below_the_threshold_are_left_out():
    found = Detections(BOXES, torch.tensor([0.9, 0.3]), torch.tensor([0, 1]), None, torch.full((2, 1, 3), 12.0))
    picture = draw_objects(GREY, found, CLASSES)
    assert pixel(picture, 10, 30) == colour(0)
    assert pixel(picture, 12, 12) == colour(0)  # its keypoint
    assert pixel(picture, 32, 14) == (100, 100, 100)
    assert pixel(draw_objects(GREY, found, CLASSES, 0.2), 32, 14) == colour(1)


def test_an_image_without_objects_is_drawn_as_it_is():
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert np.asarray(draw_objects(GREY, none, CLASSES)).std() == 0


def test_a_sheet_has_annotated_and_found_side_by_side(tmp_path):
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    images = [("a/b.png", GREY, Target(BOXES, torch.tensor([0, 1])), none)] * 3
    draw_beside_truth(images, CLASSES, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert pixels.shape == (2 * 340 + 6, 4 * 326 + 6, 3)
    where = (pixels == colour(0)).all(-1).any(0).nonzero()[0] // 326
    assert set(where.tolist()) == {0, 2}


def test_precision_recall_curves_without_some_classes(tmp_path):
    curves = [np.array([[0.0, 0.5, 1], [1, 0.8, 0.2]]), np.full((2, 101), np.nan), np.zeros((2, 0))]
    draw_precision_recall({"boxes": curves}, ["a", "b", "c"], tmp_path / "boxes.png")
    draw_precision_recall({"boxes": curves, "masks": curves[::-1]}, ["a", "b", "c"], tmp_path / "both.png")
    with Image.open(tmp_path / "boxes.png") as one, Image.open(tmp_path / "both.png") as two:
        assert 300 < one.width < two.width
