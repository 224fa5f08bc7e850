"""The structures of section 4.2 and appendix A: C4, dilated C5, FPN."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from moco.contrast import synchronise_batch_norm
from moco.runtime.errors import UserError, did_you_mean
from moco.transfer.detection.anchors import Anchors
from moco.transfer.detection.backbones import (
    FeaturePyramid,
    channels,
    conv_bn,
    dilate,
    require_resnet,
    stem,
    stem_stride,
)
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.keypoints import KeypointHead
from moco.transfer.detection.roi_heads import BoxHead, MaskHead, pool
from moco.transfer.detection.rpn import RPN, Limits

SIZES = (32, 64, 128, 256, 512)


class C4(Detector):
    """The RPN reads conv4; conv5 with one more BN, without ReLU, is the box head, and the mask head reads it."""

    shares_regions = True

    def __init__(self, encoder: nn.Module, num_classes: int, masks: bool = False, mask_width: int = 256) -> None:
        encoder = require_resnet(encoder)
        stride = 4 * stem_stride(encoder)
        rpn = RPN(channels(encoder.layer3), Anchors([SIZES], [stride]), Limits(12000, 2000), Limits(6000, 1000))
        length = channels(encoder.layer4)
        head = MaskHead(length, [], mask_width, num_classes) if masks else None
        super().__init__(encoder, rpn, length, num_classes, head)
        self.stride = stride
        self.extra_norm = nn.BatchNorm2d(length)

    def features(self, batch: Tensor) -> list[Tensor]:
        features = stem(self.encoder, batch)
        for stage in (self.encoder.layer1, self.encoder.layer2, self.encoder.layer3):
            features = self.run(stage, features)
        return [features]

    def regions(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        pooled = pool(features, [self.stride], boxes, 14)
        regions: Tensor = self.extra_norm(self.run(self.encoder.layer4, pooled))
        return regions

    def box_vectors(self, regions: Tensor) -> Tensor:
        return regions.mean(dim=(2, 3))


class DilatedC5(Detector):
    """conv5 with dilation 2 and stride 1, then two fully connected layers on 7x7 regions.

    Args:
        neck: channels of a 3x3 convolution with BN after conv5 (appendix A.1: 512), 0 for none (Detectron2's own).
        width: of the fully connected layers.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, neck: int = 512, width: int = 1024) -> None:
        encoder = require_resnet(encoder)
        dilate(encoder.layer4)
        stride = 4 * stem_stride(encoder)
        length = channels(encoder.layer4)
        anchors = Anchors([SIZES], [stride])
        rpn = RPN(neck or length, anchors, Limits(12000, 2000), Limits(6000, 1000))
        super().__init__(encoder, rpn, width, num_classes, None)
        self.stride = stride
        self.neck = conv_bn(length, neck, 3) if neck else nn.Identity()
        self.box_head = BoxHead(neck or length, 7, [], [width, width])

    def features(self, batch: Tensor) -> list[Tensor]:
        features = stem(self.encoder, batch)
        for stage in (self.encoder.layer1, self.encoder.layer2, self.encoder.layer3, self.encoder.layer4):
            features = self.run(stage, features)
        return [self.neck(features)]

    def regions(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return pool(features, [self.stride], boxes, 7)

    def box_vectors(self, regions: Tensor) -> Tensor:
        vectors: Tensor = self.box_head(regions)
        return vectors


class FPN(Detector):
    """A feature pyramid with BN; box head of four convolutions with BN and one fully connected layer.

    Args:
        pyramid: channels of the pyramid.
        convs: channels of the box head's convolutions.
        width: of its fully connected layer.
        mask_convs: channels of the mask head's convolutions, and of its transposed one.
        keypoints: of an object; 0: no keypoint head. With it boxes have a smooth L1 loss (beta 0.5), and training
            1500 proposals, as in Detectron2.
        keypoint_convs: channels of the keypoint head's eight convolutions.
    """

    multiple = 32

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        masks: bool = False,
        pyramid: int = 256,
        convs: int = 256,
        width: int = 1024,
        mask_convs: int = 256,
        keypoints: int = 0,
        keypoint_convs: int = 512,
    ) -> None:
        encoder = require_resnet(encoder)
        first = stem_stride(encoder)
        strides = [first * 2**level for level in range(5)]
        anchors = Anchors([[size] for size in SIZES], strides)
        rpn = RPN(pyramid, anchors, Limits(2000, 1500 if keypoints else 1000), Limits(1000, 1000))
        mask_head = MaskHead(pyramid, [mask_convs] * 4, mask_convs, num_classes) if masks else None
        keypoint_head = KeypointHead(pyramid, keypoints, [keypoint_convs] * 8) if keypoints else None
        super().__init__(encoder, rpn, width, num_classes, mask_head, keypoint_head, 0.5 if keypoints else 0.0)
        self.strides = strides
        stages = (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)
        self.pyramid = FeaturePyramid([channels(stage) for stage in stages], pyramid)
        self.box_head = BoxHead(pyramid, 7, [convs] * 4, [width])

    def features(self, batch: Tensor) -> list[Tensor]:
        stages = [stem(self.encoder, batch)]
        for stage in (self.encoder.layer1, self.encoder.layer2, self.encoder.layer3, self.encoder.layer4):
            stages.append(self.run(stage, stages[-1]))
        levels: list[Tensor] = self.pyramid(stages[1:])
        return levels

    def regions(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return pool(features[:4], self.strides[:4], boxes, 7)

    def box_vectors(self, regions: Tensor) -> Tensor:
        vectors: Tensor = self.box_head(regions)
        return vectors

    def mask_regions(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return pool(features[:4], self.strides[:4], boxes, 14)


STRUCTURES: dict[str, Callable[..., Detector]] = {"c4": C4, "dc5": DilatedC5, "fpn": FPN}


def build_detector(structure: str, encoder: nn.Module, num_classes: int, **options: bool | int) -> Detector:
    """A detector around an encoder that `build_encoder` made, its new layers with their initial weights.

    Its BN has statistics over all ranks. On one rank that is plain BN.

    Args:
        structure: `c4`, `dc5` (appendix A.1), `fpn`.
        options: arguments of that structure: `masks`, `keypoints`, and its widths.

    Raises:
        UserError: an unknown structure; an encoder that is no ResNet.
    """
    if structure not in STRUCTURES:
        raise UserError(f"unknown structure '{structure}'{did_you_mean(structure, list(STRUCTURES))}: c4, dc5 or fpn")
    detector = STRUCTURES[structure](encoder, num_classes, **options)
    synchronise_batch_norm(detector)
    return detector
