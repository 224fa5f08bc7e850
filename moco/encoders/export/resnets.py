"""What a ResNet is made of, in the numbers that detection libraries build theirs from."""

from dataclasses import dataclass

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from moco.encoders.description import Description
from moco.encoders.export.exported import refuse

DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""By whether blocks are bottlenecks, and their number in each stage."""


@dataclass(frozen=True)
class Shape:
    """A ResNet's depth and channels."""

    depth: int
    stem: int
    """Channels of the stem."""
    groups: int
    """Of the 3x3 convolution."""
    width: int
    """Channels of the 3x3 convolution in the first stage, of all groups."""
    out: int
    """Channels that the first stage gives."""

    @property
    def planes(self) -> int:
        """Of the first stage, as torchvision counts them: `out` without a bottleneck's expansion of 4."""
        return self.out // (4 if self.depth >= 50 else 1)


def shape_of(encoder: nn.Module, description: Description, library: str) -> Shape:
    """The shape of one of torchvision's ResNets with the stem of 7x7 pixels.

    Raises:
        UserError: it is another encoder, of another depth, or has the small stem.
    """
    if not isinstance(encoder, ResNet):
        raise refuse(library, description, "is no ResNet")
    if description.small_stem:
        raise refuse(library, description, "its ResNets have no such stem")
    stages = [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
    block = encoder.layer1[-1]
    depth = DEPTHS.get((isinstance(block, Bottleneck), tuple(map(len, stages))))  # type: ignore[arg-type]
    if depth is None:
        raise refuse(library, description, "is of another depth than 18, 34, 50, 101 and 152")
    last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
    return Shape(depth, encoder.conv1.out_channels, block.conv2.groups, block.conv2.out_channels, last.out_channels)
