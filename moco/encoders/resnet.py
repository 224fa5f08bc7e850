"""The ResNets of section 4.1 that torchvision has no name for, and the stem for small images."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

RESNET50_BLOCKS = [3, 4, 6, 3]
STAGES: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, RESNET50_BLOCKS),
}
"""Blocks of each stage, by the name of the ResNet whose width is changed."""


def wide_resnet50(width: float) -> ResNet:
    """ResNet-50 with every channel width times `width`, the stem's too (R50w2x and R50w4x of Table 1)."""
    return resnet_of_width("resnet50", width)


def resnet_of_width(name: str, width: float) -> ResNet:
    """One of STAGES with every channel width times `width`, the stem's too.

    It is not torchvision's `wide_resnet50_2`, which widens only the 3x3 convolution of each block. A
    fraction makes it narrower: 1/16 has 4 channels in place of 64.
    """
    block, stages = STAGES[name]
    encoder, channels = ResNet(block, stages), int(64 * width)
    encoder.inplanes = channels
    encoder.conv1 = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
    encoder.bn1 = nn.BatchNorm2d(channels)
    for stage, blocks in enumerate(stages):
        planes = channels * 2**stage
        setattr(encoder, f"layer{stage + 1}", encoder._make_layer(block, planes, blocks, stride=min(2, stage + 1)))
    encoder.fc = nn.Linear(encoder.inplanes, encoder.fc.out_features)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            init_convolution(module)
    return encoder


def resnext50_32x8d() -> ResNet:
    """ResNeXt-50 32x8d (RX50 of Table 1): torchvision names only the 32x4d one."""
    return ResNet(Bottleneck, RESNET50_BLOCKS, groups=32, width_per_group=8)


def use_small_stem(encoder: ResNet) -> None:
    """Exchanges the stem for a 3x3 convolution of stride 1 without max-pooling, as is usual for 32-pixel images."""
    encoder.conv1 = nn.Conv2d(3, encoder.conv1.out_channels, kernel_size=3, padding=1, bias=False)
    init_convolution(encoder.conv1)
    encoder.maxpool = nn.Identity()


def init_convolution(convolution: nn.Conv2d) -> None:
    """As torchvision's ResNet does for its own convolutions."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
