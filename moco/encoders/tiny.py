"""An encoder for 32-pixel images that a CPU can train."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from moco.encoders.resnet import init_convolution


class TinyResNet(nn.Module):
    """A 3x3 stem, then three stages of one residual block each at full, half and quarter resolution.

    Args:
        width: channels of the stem and of the first stage; each later stage has twice as many.

    Attributes:
        num_features: 4 * width.

    Its forward maps float images (n, 3, h, w) to features (n, num_features), averaged over the image.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            residual_block(width, width, stride=1),
            residual_block(width, 2 * width, stride=2),
            residual_block(2 * width, 4 * width, stride=2),
        )
        self.num_features = 4 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_convolution(module)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(images))
        return features.mean(dim=(2, 3))


def residual_block(channels_in: int, channels_out: int, stride: int) -> BasicBlock:
    """torchvision's block: two 3x3 convolutions with BN, and a 1x1 one on the shortcut where the shape changes."""
    shortcut = None
    if stride > 1 or channels_in != channels_out:
        shortcut = nn.Sequential(convolution(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))
    return BasicBlock(channels_in, channels_out, stride, shortcut)


def convolution(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias, since BN follows it."""
    return nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)
