"""The encoder's stages as the paper's detectors use them, and the feature pyramid."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from moco.runtime.errors import UserError


def require_resnet(encoder: nn.Module) -> ResNet:
    """The encoder, if it has a ResNet's stages; else UserError."""
    if not isinstance(encoder, ResNet):
        raise UserError(f"a detector needs a ResNet's stages, and {type(encoder).__name__} has none: take resnet50")
    encoder.fc = nn.Identity()
    return encoder


def stem(encoder: ResNet, images: Tensor) -> Tensor:
    """What layer1 reads."""
    output: Tensor = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(images))))
    return output


def stem_stride(encoder: ResNet) -> int:
    """Pixels from one position of layer1 to the next: 4, or 1 with the stem for small images."""
    pooling = 1 if isinstance(encoder.maxpool, nn.Identity) else int(encoder.maxpool.stride)
    return int(encoder.conv1.stride[0]) * pooling


def channels(stage: Tensor | nn.Module) -> int:
    """The channels that one of the encoder's layer1 .. layer4 gives."""
    assert isinstance(stage, nn.Sequential)
    last = [module for module in stage[-1].modules() if isinstance(module, nn.Conv2d)][-1]
    return last.out_channels


def dilate(stage: Tensor | nn.Module) -> None:
    """Gives a stage stride 1, and its 3x3 convolutions dilation 2 instead."""
    assert isinstance(stage, nn.Module)
    for convolution in stage.modules():
        if isinstance(convolution, nn.Conv2d):
            convolution.stride = (1, 1)
            if convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)


def conv_bn(channels_in: int, channels_out: int, size: int) -> nn.Sequential:
    """A convolution without bias, and BN; the initial weights are those of the FPN (uniform, by fan in)."""
    convolution = nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class FeaturePyramid(nn.Module):
    """FPN with BN (Lin et al. 2017): maps of strides 4 .. 32 to as many of equal channels, and one of stride 64."""

    def __init__(self, channels_in: Sequence[int], channels_out: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv_bn(each, channels_out, 1) for each in channels_in)
        self.output = nn.ModuleList(conv_bn(channels_out, channels_out, 3) for _ in channels_in)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """From fine to coarse: p2, p3, p4, p5, p6 of layer1 .. layer4."""
        coarse = self.lateral[-1](stages[-1])
        pyramid = [self.output[-1](coarse)]
        for stage, lateral, output in list(zip(stages, self.lateral, self.output, strict=True))[-2::-1]:
            coarse = lateral(stage) + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
            pyramid.insert(0, output(coarse))
        return [*pyramid, pyramid[-1][:, :, ::2, ::2]]
