"""The ResNets of section 4.1 that torchvision has no name for, and the stem for small images."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from moco.contrast import GroupBatchNorm

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


class _FusedBasicBlock(BasicBlock):  # type: ignore[misc]
    """torchvision's block; in groups, or on a GPU, BN, the residual and ReLU are one kernel where they follow."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = norm_relu(self.bn1, self.conv1(x))
        return norm_relu(self.bn2, self.conv2(out), identity)


class _FusedBottleneck(Bottleneck):  # type: ignore[misc]
    """torchvision's block, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = norm_relu(self.bn1, self.conv1(x))
        out = norm_relu(self.bn2, self.conv2(out))
        return norm_relu(self.bn3, self.conv3(out), identity)


class _FusedResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet; the same for its stem."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(norm_relu(self.bn1, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features: Tensor = self.fc(self.avgpool(x).flatten(1))
        return features


def norm_relu(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Normalisation, the residual, ReLU."""
    if isinstance(norm, GroupBatchNorm):
        fused: Tensor = norm(x, residual, relu=True)
        return fused
    out: Tensor = norm(x)
    if residual is not None:
        out += residual
    return F.relu(out, inplace=True)


def fuse_blocks(encoder: nn.Module) -> None:
    """Makes torchvision's ResNets ones of the same weights and numbers that take less time."""
    fused: dict[type, Any] = {BasicBlock: _FusedBasicBlock, Bottleneck: _FusedBottleneck, ResNet: _FusedResNet}
    for module in encoder.modules():
        if type(module) in fused:
            module.__class__ = fused[type(module)]


def use_small_stem(encoder: ResNet) -> None:
    """Exchanges the stem for a 3x3 convolution of stride 1 without max-pooling, as is usual for 32-pixel images."""
    encoder.conv1 = nn.Conv2d(3, encoder.conv1.out_channels, kernel_size=3, padding=1, bias=False)
    init_convolution(encoder.conv1)
    encoder.maxpool = nn.Identity()


def init_convolution(convolution: nn.Conv2d) -> None:
    """As torchvision's ResNet does for its own convolutions."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
