"""Keypoints against their definition, written out for one keypoint of one box at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from moco.transfer.detection import keypoints
from moco.transfer.detection.instances import Target
from moco.transfer.detection.keypoints import KeypointHead, bins, keypoint_loss, locate
from moco.transfer.detection.names import detectron2_name
from moco.transfer.detection.structures import build_detector

BOXES = torch.tensor([[10.0, 20, 90, 60], [0, 0, 30.5, 99.25], [5, 5, 5.5, 130]])


def annotated(count=5):
    """Some outside of their box, some on its borders, some not annotated."""
    torch.manual_seed(0)
    place = BOXES[:, None, :2] + (torch.rand(3, count, 2) * 1.4 - 0.2) * (BOXES[:, 2:] - BOXES[:, :2])[:, None]
    place[0, 0], place[0, 1], place[1, 0] = BOXES[0, :2], BOXES[0, 2:], torch.tensor([30.5, 50])
    visibility = torch.randint(0, 3, (3, count)).float()
    visibility[:, :2] = 2
    return torch.cat([place, visibility[..., None]], dim=-1)


def test_loss_is_cross_entropy_over_the_bins_of_visible_keypoints_inside_of_the_box():
    logits, points, terms = torch.randn(3, 5, 56, 56, dtype=torch.float64), annotated(), []
    for box in range(3):
        x1, y1, x2, y2 = BOXES[box].tolist()
        for number in range(5):
            x, y, visibility = points[box, number].tolist()
            if visibility > 0 and x1 <= x <= x2 and y1 <= y <= y2:
                column = 55 if x == x2 else math.floor((x - x1) * 56 / (x2 - x1))
                row = 55 if y == y2 else math.floor((y - y1) * 56 / (y2 - y1))
                terms.append(logits[box, number].logsumexp((0, 1)) - logits[box, number, row, column])
    assert 4 < len(terms) < 15
    torch.testing.assert_close(keypoint_loss(logits, points, BOXES), sum(terms) / len(terms))


def test_corners_are_in_the_first_and_last_bin():
    wanted, inside = bins(annotated(), BOXES)
    assert wanted[0, :2].tolist() == [0, 56 * 56 - 1]
    assert inside[0, :2].all()


def test_without_visible_keypoints_the_loss_is_0_and_has_a_gradient():
    logits = torch.randn(3, 5, 56, 56, requires_grad=True)
    loss = keypoint_loss(logits, torch.zeros(3, 5, 3), BOXES)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("block", [2**24, 1])
def test_keypoints_are_the_maxima_of_heat_maps_upsampled_to_the_box(block, monkeypatch):
    monkeypatch.setattr(keypoints, "_BLOCK", block)
    torch.manual_seed(0)
    logits = F.interpolate(torch.randn(3, 4, 9, 9) * 3, (56, 56), mode="bicubic").double()
    found = locate(logits.float(), BOXES)
    for box in range(3):
        x1, y1, x2, y2 = BOXES[box].double().tolist()
        width, height = max(x2 - x1, 1), max(y2 - y1, 1)
        size = math.ceil(height), math.ceil(width)
        maps = F.interpolate(logits[box : box + 1], size, mode="bicubic", align_corners=False)[0]
        for number in range(4):
            index = int(maps[number].argmax())
            row, column = divmod(index, size[1])
            x, y = (column + 0.5) * width / size[1] + x1, (row + 0.5) * height / size[0] + y1
            score = float(maps[number].max().exp() / logits[box, number].exp().sum())
            torch.testing.assert_close(found[box, number], torch.tensor([x, y, score]), rtol=1e-4, atol=1e-4)


def test_the_head_is_that_of_mask_rcnn():
    head = KeypointHead(8, 17, [512] * 8)
    assert [tuple(layer.weight.shape) for layer in head.convs] == [(512, 8 if i == 0 else 512, 3, 3) for i in range(8)]
    x = torch.randn(2, 8, 14, 14)
    low = x
    for layer in head.convs:
        low = layer(low).relu()
    low = F.conv_transpose2d(low, head.deconv.weight, head.deconv.bias, stride=2, padding=1)
    assert low.shape == (2, 17, 28, 28)
    assert torch.equal(head(x), F.interpolate(low, (56, 56), mode="bilinear"))
    assert head(x[:0]).shape == (0, 17, 56, 56)


def build():
    torch.manual_seed(0)
    options = {"pyramid": 8, "convs": 8, "width": 16, "keypoint_convs": 8}
    return build_detector("fpn", resnet18(), 1, keypoints=3, **options)


def test_a_detector_with_keypoints_trains_and_detects():
    detector = build()
    assert (detector.beta, detector.rpn.training_limits.after_nms) == (0.5, 1500)
    images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(2)]
    points = torch.tensor([[[20.0, 30, 2], [40, 50, 1], [0, 0, 0]]])
    targets = [
        Target(torch.tensor([[10.0, 10, 60, 80]]), torch.tensor([0]), keypoints=points),
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), keypoints=torch.zeros(0, 3, 3)),
    ]
    losses = detector(images, targets)
    sum(losses.values()).backward()
    assert losses["loss_keypoint"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    nothing = detector(images[1:], targets[1:])
    assert nothing["loss_keypoint"] == 0
    detector.eval()
    found, doubled = (detector(images[:1], sizes=[size])[0] for size in ((96, 128), (192, 384)))
    assert len(found)
    assert found.keypoints.shape == (len(found), 3, 3)
    torch.testing.assert_close(doubled.keypoints, found.keypoints * torch.tensor([3.0, 2, 1]))


def test_names_are_detectron2_s():
    detector = build()
    assert detectron2_name(detector, "keypoint_head.convs.0.weight") == "roi_heads.keypoint_head.conv_fcn1.weight"
    assert detectron2_name(detector, "keypoint_head.deconv.bias") == "roi_heads.keypoint_head.score_lowres.bias"
