"""A trained detector as a function of images, in Python."""

from collections.abc import Sequence

import torch
from torch import nn

from moco.evaluation.features import evaluating
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.instances import Detections
from moco.transfer.detection.transforms import resize_image, resized
from moco.transfer.images import AnyImage, pixels_of


class TrainedDetector(nn.Module):
    """A detector with its classes and the size that it detects at.

    `trained(images)` gives the `Detections` of each image, in its own pixels: boxes, scores (from 0.05), classes, and
    masks and keypoints where the detector has them. `trained.to("cuda")` moves it. In any mode it detects as in
    evaluation, each image by itself, and so alike whichever come with it.

        trained = moco.load_detector("runs/voc")
        (found,) = trained(["street.jpg"])
        [trained.classes[label] for label in found.classes]

    Args:
        detector: a `Detector`.
        classes: their names.
        side, maximum: the shorter side that images are resized to, and the most of the longer one, in pixels.
    """

    def __init__(self, detector: Detector, classes: Sequence[str], side: int, maximum: int = 1333) -> None:
        super().__init__()
        self.detector, self.classes, self.side, self.maximum = detector, list(classes), side, maximum
        self.eval()

    @torch.no_grad()
    def forward(self, images: Sequence[AnyImage]) -> list[Detections]:
        """Detections of each image: uint8 (3, height, width) in RGB, a picture of Pillow's, or the path of a file.

        Raises UserError for an image that cannot be read, or is something else.
        """
        found = []
        with evaluating(self.detector):
            for pixels in pixels_of(images, "a detector"):
                size = int(pixels.shape[1]), int(pixels.shape[2])
                small = resize_image(pixels.cpu(), *resized(*size, self.side, self.maximum))
                found += self.detector([small.to(self.detector.mean.device)], sizes=[size])
        return found
