"""A trained classifier, ready to use."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.data import Encoded, Files
from moco.data.formats.decode import read_image
from moco.evaluation import encode
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.transfer.classification.network import Classifier, test_views


class TrainedClassifier(nn.Module):
    """Images to the probability of each class.

    Args:
        network: the encoder and its classifier.
        classes: their names.
        image_size: height and width in pixels at which images are seen.
        normalisation: of their colours, imagenet or cifar.
    """

    def __init__(self, network: Classifier, classes: list[str], image_size: int, normalisation: str) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self.image_size, self.normalisation = image_size, normalisation
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.network.classifier.weight.device

    @torch.no_grad()
    def forward(self, images: Tensor | Sequence[Tensor | Path | str]) -> Tensor:
        """Probabilities, float32 (n, classes) on the CPU, whose rows sum to 1; `classes` are the names.

        Args:
            images: uint8 (n, 3, height, width) in RGB; or a list, of tensors uint8 (3, height, width) of any sizes or
                of files.

        Raises UserError, naming it, for a file that is no image, and for tensors of another type or shape.
        """
        views = test_views(self.image_size, self.normalisation, channels_last=False)
        rows = [torch.empty(0, len(self.classes))]
        for image in images:
            pixels = image if isinstance(image, Tensor) else read_image(Path(image))
            if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3:
                raise UserError(f"images are uint8 (3, height, width), not {pixels.dtype} {tuple(pixels.shape)}")
            (view,) = views(pixels[None].to(self.device), torch.zeros(1, dtype=torch.int64), 0)
            rows.append(self.network(view).float().softmax(dim=1).cpu())
        return torch.cat(rows)

    def of_files(
        self,
        paths: Sequence[Path],
        device: Device,
        workers: int | None = 0,
        progress: Callable[[Iterable[object]], Iterable[object]] = iter,
    ) -> tuple[Tensor, Tensor]:
        """Probabilities of the images in files, float32 (n, classes), and which files they are of, int64 (n,): those
        that can be read; the others are named in the log. Ranks share the work.

        Raises UserError where none can be read.
        """
        views = test_views(self.image_size, self.normalisation, device.channels_last)
        network = self.network.to(device.device, memory_format=device.memory_format)  # type: ignore[call-overload]
        return encode(
            network,
            Encoded(Files(paths), None, max_bad=1.0),
            views,
            device,
            batch_size=min(256, len(paths)),
            workers=workers,
            progress=progress,  # type: ignore[arg-type]
            keep=lambda logits: logits.softmax(dim=1),
        )
