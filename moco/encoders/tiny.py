"""An encoder for 32-pixel images that a CPU can train."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from moco.encoders.resnet import init_convolution, norm_relu


class TinyResNet(nn.Module):
    """A 4x4 stem of stride 2, then a residual block at half, quarter and eighth resolution each.

    A 32-pixel image costs 12 million multiplications, a 46th of what ResNet-18 with the small stem takes.

    Args:
        width: the channels of every layer as a share of the full 32, 32, 64 and 256.

    Attributes:
        num_features: 256 times the width.

    Its forward maps float images (n, 3, h, w) to features (n, num_features), averaged over the image.
    """

    def __init__(self, width: float = 1) -> None:
        super().__init__()
        stem, first, second, self.num_features = (round(channels * width) for channels in (32, 32, 64, 256))
        # Overlapping patches of 4x4: full resolution would cost more than all that follows.
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 4, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            residual_block(stem, first, stride=1),
            residual_block(first, second, stride=2),
            residual_block(second, self.num_features, stride=2),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_convolution(module)

    def forward(self, images: Tensor) -> Tensor:
        convolution, norm, _ = self.stem
        features: Tensor = self.stages(norm_relu(norm, convolution(images)))
        return features.mean(dim=(2, 3))


def residual_block(channels_in: int, channels_out: int, stride: int) -> BasicBlock:
    """torchvision's block: two 3x3 convolutions with BN, and a 1x1 one on the shortcut where the shape changes."""
    shortcut = None
    if stride > 1 or channels_in != channels_out:
        projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))
    return BasicBlock(channels_in, channels_out, stride, shortcut)
