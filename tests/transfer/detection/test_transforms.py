import numpy as np
import pytest
import torch
from PIL import Image

from moco.transfer.detection.instances import Target
from moco.transfer.detection.transforms import (
    choose,
    clip_target,
    flip_target,
    nonempty,
    resize_image,
    resize_target,
    resized,
    transform,
)
from tests.transfer.detection.reference_numbers import data, inputs

DATA = data()


def test_sizes_are_detectron2_s():
    for h, w, side, maximum, *new in DATA["resize_shapes"].tolist():
        assert list(resized(h, w, side, maximum)) == new


def test_pixels_are_pillow_s():
    image = DATA["resize_pixels"]["image_hwc_rgb"].permute(2, 0, 1)
    for expected in DATA["resize_pixels"]["results"]:
        # Pillow's own arithmetic is whole numbers, alike on every processor; releases may differ by one.
        difference = resize_image(image, *expected.shape[:2]).permute(1, 2, 0).int() - expected.int()
        assert difference.abs().max() <= 1


@pytest.mark.parametrize("entry", DATA["annotations"], ids=lambda entry: str(entry["out_size"]))
def test_objects_are_resized_flipped_clipped_and_left_out_as_by_detectron2(entry):
    polygons = [[p.numpy() for p in outline] for outline in DATA["gt_polygons"][0]]
    count = len(entry["classes_in"])
    masks = [polygons[i % len(polygons)] for i in range(count)]
    target = Target(entry["boxes_in"], torch.tensor(entry["classes_in"]), masks)
    target = resize_target(target, tuple(entry["in_size"]), tuple(entry["out_size"]))
    if entry["flip"]:
        target = flip_target(target, entry["out_size"][1])
    target = clip_target(target, *entry["out_size"])
    assert torch.allclose(target.boxes.float(), entry["boxes_out"].float(), rtol=1e-7, atol=0)
    for i in range(min(4, count)):
        for ours, expected in zip(target.masks[i], entry["polygons_out"][i], strict=True):
            assert np.allclose(ours, expected.numpy(), rtol=0, atol=1e-9)
    kept = nonempty(target)
    assert torch.allclose(kept.boxes.float(), entry["boxes_kept"].float(), rtol=1e-7, atol=0)
    assert torch.equal(kept.classes, entry["classes_kept"])
    assert len(kept) == entry["n_kept_by_filter_empty"]


def test_an_image_is_resized_and_flipped_as_by_detectron2():
    compared = 0
    for entry in DATA["annotations"]:
        if "image_out_hwc" in entry:
            (height, width), empty = entry["out_size"], Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
            ours, _ = transform(inputs()[0][0], empty, min(height, width), max(height, width), entry["flip"])
            difference = ours.permute(1, 2, 0).int() - entry["image_out_hwc"].int()
            assert difference.abs().max() <= 1  # as above
            compared += 1
    assert compared


@pytest.mark.parametrize("new", [(31, 44), (90, 61), (45, 200)])
def test_bitmaps_are_resized_as_by_pillow(new):
    masks = torch.from_numpy(np.random.default_rng(0).random((2, 45, 61)) < 0.5)
    target = Target(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), masks)
    ours = resize_target(target, (45, 61), new).masks
    for mask, result in zip(masks, ours, strict=True):
        expected = Image.fromarray(mask.numpy().astype(np.uint8)).resize(new[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(result.numpy(), np.array(expected, dtype=bool))


def test_keypoints_in_the_mirror_exchange_left_and_right_and_outside_count_as_none():
    keypoints = torch.tensor([[[5.0, 6, 2], [20, 8, 1], [70, 3, 2]]])
    target = Target(torch.tensor([[1.0, 1, 30, 30]]), torch.tensor([0]), None, keypoints)
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    _, found = transform(image, target, 80, flip=True, flipped_keypoints=[0, 2, 1])
    assert found.keypoints.tolist() == [[[110, 12, 2], [0, 0, 0], [80, 16, 1]]]
    assert found.boxes.tolist() == [[60, 2, 118, 60]]


def test_an_object_and_its_pixels_stay_together():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:20, 30:50] = 255
    masks = image[:1].bool()
    target = Target(torch.tensor([[30.0, 10, 50, 20]]), torch.tensor([3]), masks)
    image, found = transform(image, target, 80, flip=True)
    (box,) = found.boxes.int().tolist()
    assert box == [20, 20, 60, 40]
    assert found.masks[0, 20:40, 20:60].all()
    assert int(found.masks.sum()) == 20 * 40
    assert image[:, 22:38, 22:58].min() == 255


def test_sides_and_flips_are_pure_functions_that_take_every_value():
    index, sides = torch.arange(4000), tuple(range(480, 801, 32))
    side, flip = choose(3, 7, index, sides)
    again = choose(3, 7, torch.tensor([17]), sides)
    assert (int(again[0]), bool(again[1])) == (int(side[17]), bool(flip[17]))
    counts = torch.bincount(side, minlength=801)[list(sides)]
    assert counts.sum() == 4000
    assert counts.min() > 280
    assert 1850 < flip.sum() < 2150
    assert not torch.equal(choose(3, 8, index, sides)[0], side)
    assert not torch.equal(choose(4, 7, index, sides)[0], side)
