"""NMS as far as it is needed, against NMS of all boxes."""

import pytest
import torch
from torchvision.ops import batched_nms

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


def test_no_boxes():
    boxes, scores, group = boxes_of(0, 1.0, 1)
    assert first_of_nms(boxes, scores, group, 0.5, 10).tolist() == []


def test_no_more_boxes_are_compared_than_are_needed(monkeypatch):
    sizes = []
    monkeypatch.setattr(nms, "batched_nms", lambda boxes, *rest: sizes.append(len(boxes)) or batched_nms(boxes, *rest))
    apart = torch.arange(1000.0)[:, None] * 20
    boxes = torch.cat([apart, apart, apart + 10, apart + 10], dim=1)
    first_of_nms(boxes, torch.rand(1000), torch.zeros(1000, dtype=torch.int64), 0.5, 100)
    assert sizes == [200]
