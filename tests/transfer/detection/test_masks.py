import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_mask

from moco.contrast.kernels import kernels
from moco.runtime.errors import UserError
from moco.transfer.detection.masks import (
    crop_bitmaps,
    crop_polygons,
    decode_rle,
    draw_polygons,
    encode_masks,
    paste_masks,
    polygon_area,
    polygons_to_bitmap,
)
from tests.transfer.detection.reference_numbers import data, pasted

DATA, PASTED = data(), pasted()


def polygons(image: int) -> list[list[np.ndarray]]:
    return [[polygon.numpy() for polygon in outline] for outline in DATA["gt_polygons"][image]]


def bitmaps(image: int) -> torch.Tensor:
    shape = (len(DATA["gt_boxes"][image]), *DATA["sizes_hw"][image])
    bits = np.unpackbits(DATA["gt_bitmaps"][image].numpy())[: int(np.prod(shape))]
    return torch.from_numpy(bits.reshape(shape).astype(bool))


@pytest.mark.parametrize("image", range(len(DATA["sizes_hw"])))
def test_polygons_are_drawn_as_by_detectron2(image):
    assert torch.equal(draw_polygons(polygons(image), *DATA["sizes_hw"][image]), bitmaps(image))


@pytest.mark.parametrize("size", [14, 28])
def test_mask_targets_are_detectron2_s(size):
    targets = DATA["mask_targets"]
    rows = targets["object"]
    cropped = crop_polygons([polygons(0)[row] for row in rows], targets["boxes"], size)
    assert torch.equal(cropped, targets[f"polygon_{size}"])
    assert torch.equal(crop_bitmaps(bitmaps(0)[rows], targets["boxes"], size), targets[f"bitmask_{size}"])


@pytest.mark.parametrize("block", [None, 2**22, 5000], ids=["compiled", "in one block", "in blocks"])
@pytest.mark.parametrize("name", sorted({key.rpartition("_")[0] for key in PASTED}))
def test_masks_are_pasted_as_by_detectron2(name, block, monkeypatch):
    if block is not None:
        monkeypatch.setattr("moco.transfer.detection.masks._BLOCK", block)
        monkeypatch.setattr("moco.transfer.detection.masks.kernels", lambda _module: None)
    logits, boxes, masks = (torch.from_numpy(PASTED[f"{name}_{key}"]) for key in ("logits", "boxes", "masks"))
    assert torch.equal(paste_masks(logits.sigmoid(), boxes, *masks.shape[1:]), masks)


def test_the_compiled_way_to_paste_gives_the_same_bits(monkeypatch):
    """Boxes across the edges, without area, turned around; every pixel, whatever the threshold."""
    torch.manual_seed(0)
    probabilities = torch.rand(40, 28, 28)
    corner = 60 * torch.rand(40, 2) - 15
    boxes = torch.cat([corner, corner + 50 * torch.rand(40, 2)], dim=1)
    boxes[0], boxes[1] = torch.tensor([5.0, 5, 5, 20]), torch.tensor([30.0, 30, 10, 10])
    assert kernels("moco.transfer.detection.masks_cpu") is not None
    for threshold in (0.3, 0.5, 0.75):
        compiled = paste_masks(probabilities, boxes, 50, 40, threshold)
        with monkeypatch.context() as patched:
            patched.setattr("moco.transfer.detection.masks.kernels", lambda _module: None)
            assert torch.equal(compiled, paste_masks(probabilities, boxes, 50, 40, threshold))
        assert 0 < compiled.sum() < compiled.numel()


def test_nothing_is_nothing():
    assert paste_masks(torch.zeros(0, 14, 14), torch.zeros(0, 4), 5, 6).shape == (0, 5, 6)
    assert crop_polygons([], torch.zeros(0, 4), 14).shape == (0, 14, 14)
    assert encode_masks(torch.zeros(0, 5, 6, dtype=torch.bool)) == []


def test_a_box_outside_of_the_image_is_pasted_as_nothing():
    boxes = torch.tensor([[-30.0, -30, -10, -10], [2, 2, 2, 2]])
    assert not paste_masks(torch.ones(2, 14, 14), boxes, 20, 20).any()


def test_the_area_of_polygons_is_their_sum():
    square = np.array([1.0, 1, 5, 1, 5, 5, 1, 5])
    assert polygon_area([square, square / 2]) == 16 + 4


@pytest.mark.parametrize("density", [0, 0.001, 0.5, 1])
def test_run_lengths_go_there_and_back_in_both_forms(density):
    mask = torch.from_numpy(np.random.default_rng(0).random((70, 90)) < density)
    compressed = encode_masks(mask[None])[0]
    expected = reference_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    assert compressed["counts"] == expected["counts"].decode()
    assert torch.equal(decode_rle(compressed), mask)
    column = mask.T.flatten().int().tolist()
    edges = [0, *(i for i in range(1, len(column)) if column[i] != column[i - 1]), len(column)]
    counts = [0] * column[0] + np.diff(edges).tolist()
    assert torch.equal(decode_rle({"size": [70, 90], "counts": counts}), mask)


@pytest.mark.parametrize("counts", ["", "o", "~~", [3, 4], [-1, 101], ["a"], [1.5, 98.5], None, "1" * 30])
def test_damaged_run_lengths_are_an_error(counts):
    with pytest.raises(ValueError, match=r"run|counts"):
        decode_rle({"size": [10, 10], "counts": counts})


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", None)
    with pytest.raises(UserError, match=r"momentum-contrast\[detection\]"):
        polygons_to_bitmap([np.array([1.0, 1, 5, 1, 5, 5])], 9, 9)
