"""The FCN-16s-like network of the paper's semantic segmentation: a class for every pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.encoders.resnet import init_convolution
from moco.runtime.ranks import mean_over_ranks
from moco.transfer.detection.backbones import channels, dilate, require_resnet, stem, stem_stride
from moco.transfer.detection.checkpointing import run_blocks
from moco.transfer.detection.detector import MEAN, STD

IGNORED = 255
"""The label of pixels that are neither trained on nor evaluated: borders, what is not annotated, padding."""


class FCN(nn.Module):
    """A ResNet with dilation 2 and stride 1 in conv5, two 3x3 convolutions with dilation 6, a 1x1 classifier.

    The convolutions have BN and ReLU. They start as those of a ResNet, the classifier with a standard deviation of
    0.01 and without bias, so that at first all classes are about as likely.

    Args:
        encoder: a ResNet of `build_encoder`, which is changed. UserError for another family.
        width: channels of the two convolutions.

    Attributes:
        encoder: the whole ResNet, under torchvision's names: `load_weights(path, fcn.encoder)`.
        stride: pixels from one position of the classifier's input to the next: 16, less with a small stem.
        checkpointing: activations of the encoder's blocks are computed again in backward instead of kept.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, num_classes: int, width: int = 256) -> None:
        super().__init__()
        self.encoder = require_resnet(encoder)
        dilate(self.encoder.layer4)
        self.num_classes, self.stride, self.checkpointing = num_classes, 4 * stem_stride(self.encoder), False
        self.head = nn.Sequential(
            *dilated_conv_bn(channels(self.encoder.layer4), width), *dilated_conv_bn(width, width)
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w), RGB, to logits, float32 (n, num_classes, h, w); `argmax(1)` are the classes."""
        features = stem(self.encoder, (images - self.mean) / self.std)
        for stage in (self.encoder.layer1, self.encoder.layer2, self.encoder.layer3, self.encoder.layer4):
            features = run_blocks(stage, features) if self.checkpointing else stage(features)
        logits = self.classifier(self.head(features)).float()
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def dilated_conv_bn(channels_in: int, channels_out: int, dilation: int = 6) -> tuple[nn.Module, ...]:
    """A 3x3 convolution that keeps the size, BN and ReLU."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation, bias=False)
    init_convolution(convolution)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over all pixels that are not ignored; 0 if all are.

    Over several ranks the mean of what this gives on each of them, and so of its gradients, is that of all their
    pixels, since each divides by the mean number of pixels a rank.

    Args:
        logits: float (n, num_classes, h, w).
        labels: integers (n, h, w), below num_classes or 255.
    """
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / mean_over_ranks((labels != IGNORED).sum(), logits)
