"""A trained network for segmentation as a function of images, in Python."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moco.evaluation.features import evaluating
from moco.transfer.images import AnyImage, pixels_of
from moco.transfer.segmentation.fcn import FCN


class TrainedSegmenter(nn.Module):
    """A network for segmentation with its classes.

    `trained(images)` gives the class of every pixel of each image, uint8 (height, width) on the CPU, in its own pixels.
    `trained.to("cuda")` moves it. In any mode it segments as in evaluation, each image by itself and whole.

        trained = moco.load_segmenter("runs/street")
        (labels,) = trained(["street.jpg"])
        [trained.classes[label] for label in labels.unique()]

    Args:
        network: an `FCN`.
        classes: their names, in the order of the labels' values.
    """

    def __init__(self, network: FCN, classes: Sequence[str]) -> None:
        super().__init__()
        self.network, self.classes = network, list(classes)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Sequence[AnyImage]) -> list[Tensor]:
        """Labels of each image: uint8 (3, height, width) in RGB, a picture of Pillow's, or the path of a file.

        Raises UserError for an image that cannot be read, or is something else.
        """
        with evaluating(self.network):
            return [self._labels(image) for image in pixels_of(images, "a segmenter")]

    def _labels(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image[None].to(self.network.mean.device))
        return logits[0].argmax(0).byte().cpu()
