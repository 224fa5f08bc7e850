"""A task that a test trains in milliseconds: which of two channels of an 8-pixel image is brighter."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.batchnorm import synchronise_batch_norm
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather, rank, world_size
from moco.transfer.config import LabelledData, TransferCompute, TransferLog
from moco.transfer.loop import train
from moco.transfer.run import SegmentationRun
from moco.transfer.segmentation.config import SegmentationConfig, SegmentationSchedule
from moco.transfer.task import Measured

CPU = Device(torch.device("cpu"), False, True)
IMAGES, TEST = 10, 99
"""How many there are, and the epoch that stands for the test images, none of which is broken."""


def config(log: TransferLog | None = None, max_bad: float = 0.0, **training) -> SegmentationConfig:
    """Of 7 steps of 4 images; the loop needs the groups that all tasks have."""
    schedule = {"iterations": 7, "batch_size": 4, "lr": 0.1, "milestones": (5,), "warmup": 3, **training}
    return SegmentationConfig(
        data=LabelledData(max_bad=max_bad),
        training=SegmentationSchedule(**schedule),
        compute=TransferCompute("cpu", "fp32", workers=0),
        log=log or TransferLog(log_every=2),
    )


class Net(nn.Module):
    """A convolution, BN over all ranks, dropout, a classifier."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.convolution, self.norm, self.classifier = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.dropout, self.checkpointing = dropout, False
        self.seen: list[tuple[bool, bool]] = []
        """Of each forward, whether it was in training mode, and with checkpointing."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, self.checkpointing))
        features = self.norm(self.convolution(images)).relu().mean((2, 3))
        return self.classifier(F.dropout(features, self.dropout, self.training))


class Toy:
    """A `Task`.

    Args:
        broken: numbers of the images that cannot be read.
    """

    images = IMAGES

    def __init__(self, broken: Sequence[int] = (), precise_bn: int = 0, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = synchronise_batch_norm(Net(dropout))
        self.precise_bn, self.broken, self.facts = precise_bn, broken, {"classes": ["a", "b"]}
        self.read_images: list[tuple[int, int]] = []

    def read(self, epoch: int, index: int) -> tuple[Tensor, int]:
        if index in self.broken and epoch != TEST:
            raise UserError(f"image {index} of disk 7: is broken")
        self.read_images.append((epoch, index))
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        image = torch.randn(2, 8, 8, generator=generator) + torch.randn(2, 1, 1, generator=generator)
        return image, int(image[0].mean() > image[1].mean())

    def losses(self, samples: Sequence[tuple[Tensor, int]], device: torch.device) -> dict[str, Tensor]:
        images, labels = zip(*samples, strict=True)
        logits = self.model(torch.stack(images))
        return {"right": F.cross_entropy(logits, torch.tensor(labels)), "small": 1e-3 * logits.square().mean()}

    @torch.no_grad()
    def evaluate(self, device: Device, workers: int) -> Measured:
        numbers = range(rank(), IMAGES, world_size())
        pairs = [self.read(TEST, number) for number in numbers]
        right = sum(int(self.model(image[None]).argmax()) == label for image, label in pairs)
        accuracy = 100 * float(gather(torch.tensor([right])).sum()) / IMAGES
        return Measured({"accuracy": accuracy}, lambda folder: (folder / "written").write_text(f"{accuracy}") and None)


def run(folder: Path, own: SegmentationConfig, task: Toy, resume: bool = False) -> Measured:
    """Trains the task in a folder."""
    at = SegmentationRun(folder) if resume else SegmentationRun.create(folder, own)
    return train(own, task, at, CPU, resume)
