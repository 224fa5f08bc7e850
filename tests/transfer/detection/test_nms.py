"""NMS as far as it is needed, against NMS of all boxes."""

import pytest
import torch
from torchvision.ops import batched_nms, box_iou
from torchvision.ops import nms as torchvision_nms

from moco.transfer.detection import nms
from moco.transfer.detection.nms import first_of_nms


def boxes_of(number: int, side: float, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    corners = torch.rand(number, 2) * side
    boxes = torch.cat([corners, corners + 5 + 10 * torch.rand(number, 2)], dim=1)
    return boxes, torch.rand(number), torch.randint(groups, (number,))


@pytest.mark.parametrize("side", [3.0, 30.0, 300.0], ids=["most are suppressed", "many", "few"])
@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("number", [1, 7, 100, 1000])
def test_it_is_the_beginning_of_nms_of_all(side, groups, number):
    torch.manual_seed(number + groups)
    boxes, scores, group = boxes_of(600, side, groups)
    assert torch.equal(first_of_nms(boxes, scores, group, 0.5, number), batched_nms(boxes, scores, group, 0.5)[:number])


def test_more_boxes_and_classes_than_torchvision_moves_apart():
    """Of 80 classes and a side of 1,333 pixels float32 has steps of 1/128 of a pixel, where groups are moved apart."""
    torch.manual_seed(0)
    boxes, scores, group = boxes_of(3000, 1333.0, 80)
    # Neighbours whose overlap is 0.7 to within a few ten-thousandths, above or below, by more than float32 rounds.
    width = boxes[::2, 2] - boxes[::2, 0]
    aside = width * 0.3 / 1.7 + 1e-3 * torch.randn(1500)
    boxes[1::2] = boxes[::2] + torch.stack([aside, torch.zeros(1500), aside, torch.zeros(1500)], dim=1)
    group[1::2] = group[::2]
    overlap = box_iou(boxes[::2].double(), boxes[1::2].double()).diagonal()
    clear = ((overlap - 0.7).abs() > 3e-6).repeat_interleave(2)
    boxes, scores, group = boxes[clear], scores[clear], group[clear]
    assert len(boxes) > 2900
    expected = batched_nms(boxes, scores, group, 0.7)
    assert 1000 < len(expected) < 3000
    for number in (100, 700, 3000):
        assert torch.equal(first_of_nms(boxes, scores, group, 0.7, number), expected[:number])


def test_no_boxes():
    boxes, scores, group = boxes_of(0, 1.0, 1)
    assert first_of_nms(boxes, scores, group, 0.5, 10).tolist() == []


def test_no_more_boxes_are_compared_than_are_needed(monkeypatch):
    sizes = []
    monkeypatch.setattr(nms, "nms", lambda boxes, *rest: sizes.append(len(boxes)) or torchvision_nms(boxes, *rest))
    apart = torch.arange(1000.0)[:, None] * 20
    boxes = torch.cat([apart, apart, apart + 10, apart + 10], dim=1)
    first_of_nms(boxes, torch.rand(1000), torch.zeros(1000, dtype=torch.int64), 0.5, 100)
    assert sizes == [200]
