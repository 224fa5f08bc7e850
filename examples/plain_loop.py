"""MoCo as a module in a loop of one's own: any encoder, any data set that gives two views of an image.

python examples/plain_loop.py            # 50 s on a CPU core: prints the loss, chance, the contrastive accuracy
"""

import math

import torch
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.transforms import v2

from moco import MoCo
from moco.data.sources.shapes import draw

TRANSFORM = v2.Compose(
    [
        v2.RandomResizedCrop(32, scale=(0.3, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.ToDtype(torch.float32, scale=True),
    ]
)


class Pairs(torch.utils.data.Dataset):
    """Two random views of each image."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return TRANSFORM(self.images[index]), TRANSFORM(self.images[index])


def main(images: int = 2048, epochs: int = 3) -> float:
    """Trains; returns the mean loss of the last epoch."""
    torch.manual_seed(0)
    encoder = models.resnet18()
    encoder.fc = torch.nn.Identity()
    moco = MoCo(encoder, dim=64, queue_size=512, momentum=0.99, temperature=0.1, head="mlp", bn_group=32)
    optimizer = torch.optim.SGD(moco.query.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Pairs(draw(torch.arange(images)).images), batch_size=64, shuffle=True, drop_last=True)
    for epoch in range(epochs):
        losses = []
        for view1, view2 in loader:
            loss, accuracy = moco(view1, view2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        print(f"epoch {epoch + 1}: loss {mean:.2f} (chance {math.log(513):.2f}), contrastive accuracy {accuracy:.0%}")
    return mean


if __name__ == "__main__":
    main()
