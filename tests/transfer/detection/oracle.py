"""Images that hold their number, and a detector that reads it and knows what is in them, more or less."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moco.runtime.errors import UserError
from moco.transfer.detection.instances import Detections, Target, Truth

CLASSES = ["cat", "dog", "unicorn"]
"""There is no unicorn."""


class Numbered:
    """A `DetectionSet`: image i is of the grey i, with up to three objects, a difficult one and a crowd among them."""

    classes, flipped_keypoints = CLASSES, None

    def __init__(self, index: Iterable[int], masks: bool = True, points: int = 17, broken: Iterable[int] = ()) -> None:
        self.index, self.masks, self.points, self.broken = list(index), masks, points, set(broken)

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        return f"folder/{self.index[index]}.png"

    def subset(self, index: Iterable[int]) -> "Numbered":
        return Numbered([self.index[i] for i in index], self.masks, self.points, self.broken)

    def with_objects(self, keypoints: bool = False) -> Tensor:
        return torch.tensor([i for i in range(len(self)) if self.index[i] % 4])

    def image(self, index: int) -> Tensor:
        number = self.index[index]
        if number in self.broken:
            raise UserError(f"{self.name(index)}: cannot be decoded")
        return torch.full((3, *size_of(number)), number, dtype=torch.uint8)

    def target(self, index: int) -> Target:
        return self.truth(index).target

    def truth(self, index: int) -> Truth:
        return truth_of(self.index[index], self.masks, self.points)


def size_of(number: int) -> tuple[int, int]:
    return 40 + number % 5, 60 - number % 7


def truth_of(number: int, masks: bool = True, points: int = 17) -> Truth:
    generator = torch.Generator().manual_seed(number)
    count, (height, width) = number % 4, size_of(number)
    corners = torch.rand(count, 2, generator=generator) * 15
    boxes = torch.cat((corners, corners + 12 + torch.rand(count, 2, generator=generator) * 12), 1)
    inside = boxes[:, None, :2] + torch.rand(count, points or 1, 2, generator=generator) * 12
    seen = torch.full((count, points or 1, 1), 2.0)
    target = Target(
        boxes,
        torch.arange(count) % 2,
        filled(boxes, height, width) if masks else None,
        torch.cat((inside, seen), 2) if points else None,
    )
    difficult, crowd = torch.arange(count) == 2, (torch.arange(count) == 1) & (number % 3 == 0)
    return Truth(target, difficult, crowd, (boxes[:, 2:] - boxes[:, :2]).prod(1).double(), (height, width))


def filled(boxes: Tensor, height: int, width: int) -> Tensor:
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    x1, y1, x2, y2 = (side[:, None, None] for side in boxes.unbind(1))
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def found_in(number: int, masks: bool = True, points: int = 17) -> Detections:
    """Each object, somewhat moved, and something that is not there; best first."""
    truth, generator = truth_of(number, masks, points), torch.Generator().manual_seed(1000 + number)
    boxes = torch.cat((truth.target.boxes, torch.tensor([[1.0, 1, 9, 9]])))
    boxes = boxes + torch.randn(boxes.shape, generator=generator)
    classes = torch.cat((truth.target.classes, torch.tensor([number % 3])))
    scores = torch.rand(len(boxes), generator=generator).mul(10).round().div(10)  # many alike
    order = scores.argsort(descending=True, stable=True)
    keypoints = None
    if points:
        assert truth.target.keypoints is not None
        keypoints = torch.cat((truth.target.keypoints, torch.ones(1, points, 3)))
        keypoints = (keypoints + torch.randn(keypoints.shape, generator=generator) * 0.3)[order]
    drawn = filled(boxes, *truth.size)[order] if masks else None
    return Detections(boxes[order], scores[order], classes[order], drawn, keypoints)


class Oracle(nn.Module):
    """What `evaluate_detector` needs of a detector."""

    def __init__(self, masks: bool = True, points: int = 17) -> None:
        super().__init__()
        self.masks, self.points, self.num_classes = masks, points, len(CLASSES)
        self.mask_head = nn.Identity() if masks else None
        self.keypoint_head = nn.Identity() if points else None
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.seen: list[tuple[int, int]] = []

    def forward(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        assert not self.training
        assert not torch.is_grad_enabled()
        numbers = [int(image[0, 0, 0]) for image in images]
        assert sizes == [size_of(number) for number in numbers]
        self.seen += [(image.shape[1], image.shape[2]) for image in images]
        return [found_in(number, self.masks, self.points) for number in numbers]
