"""A detector as a whole: images and targets to losses, images to detections. The structures derive from it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from moco.transfer.detection.boxes import clip, has_area
from moco.transfer.detection.checkpointing import run_blocks
from moco.transfer.detection.instances import Detections, Target
from moco.transfer.detection.keypoints import KeypointHead, keypoint_loss, locate
from moco.transfer.detection.masks import crop_bitmaps, crop_polygons, paste_masks
from moco.transfer.detection.roi_heads import (
    SAMPLED,
    BoxPredictor,
    MaskHead,
    Regions,
    box_losses,
    detections,
    mask_loss,
    sample_regions,
)
from moco.transfer.detection.rpn import RPN
from moco.transfer.detection.sampler import Order, random_order

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
Size = tuple[int, int]


class Detector(nn.Module):
    """Faster R-CNN and Mask R-CNN as section 4.2 has them.

    In training `detector(images, targets)` gives the losses, scalars by name, whose sum is trained. In evaluation
    `detector(images, sizes)` gives the `Detections` of each image, scaled to `sizes` ((height, width) each), by default
    to the image's own size.

    Attributes:
        encoder: the whole ResNet, under torchvision's names: `load_weights(path, detector.encoder)`.
        order: of anchors and proposals when they are sampled; random, from PyTorch's own generator.
        sampled_regions: regions of an image in the losses of the box head, at most a quarter of them with an object.
        checkpointing: activations of the encoder's blocks are computed again in backward instead of kept.
    """

    mean: Tensor
    std: Tensor
    multiple = 1
    """Batches are padded so that their sides are a multiple of it."""
    shares_regions = False
    """Whether the mask head reads the box head's regions."""

    def __init__(
        self,
        encoder: ResNet,
        rpn: RPN,
        box_length: int,
        num_classes: int,
        mask_head: MaskHead | None,
        keypoint_head: KeypointHead | None = None,
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.rpn, self.num_classes, self.beta = encoder, rpn, num_classes, beta
        self.box_predictor = BoxPredictor(box_length, num_classes)
        self.mask_head, self.keypoint_head = mask_head, keypoint_head
        self.order: Order = random_order
        self.sampled_regions = SAMPLED
        self.checkpointing = False
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def features(self, batch: Tensor) -> list[Tensor]:
        """The levels, fine to coarse, that the RPN reads, of a batch (n, 3, h, w)."""
        raise NotImplementedError

    def regions(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """What the box head's last part reads of the boxes of each image: (r, c, 7, 7)."""
        raise NotImplementedError

    def box_vectors(self, regions: Tensor) -> Tensor:
        """(r, c, 7, 7) to (r, length)."""
        raise NotImplementedError

    def mask_regions(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """What the heads of masks and keypoints read of the boxes of each image."""
        return self.regions(features, boxes)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None, sizes: Sequence[Size] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Images are uint8 (3, height, width), RGB, of any sizes, on the detector's device."""
        image_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        if self.training:
            assert targets is not None, "in training a detector needs the targets"
            return self.losses(self.features(self.batch(images)), image_sizes, targets)
        with torch.no_grad():
            return self.detect(self.features(self.batch(images)), image_sizes, sizes or image_sizes)

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Images, normalised, then padded with 0 on the right and below to one size: float32 (n, 3, h, w)."""
        height, width = (
            -(-max(image.shape[side] for image in images) // self.multiple) * self.multiple for side in (-2, -1)
        )
        batch = images[0].new_zeros(len(images), 3, height, width, dtype=torch.float32)
        for image, place in zip(images, batch, strict=True):
            place[:, : image.shape[-2], : image.shape[-1]] = (image - self.mean) / self.std
        return batch

    def run(self, stage: nn.Module, features: Tensor) -> Tensor:
        """One of the encoder's stages."""
        return run_blocks(stage, features) if self.checkpointing else stage(features)

    def losses(self, features: list[Tensor], sizes: Sequence[Size], targets: Sequence[Target]) -> dict[str, Tensor]:
        """All losses by name."""
        anchors = self.rpn.anchors(features)
        logits, deltas = self.rpn(features)
        losses = self.rpn.losses(torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), targets, self.order)
        proposals = self.rpn.propose(anchors, logits, deltas, sizes)
        sampled = [
            sample_regions(one.boxes, target, self.num_classes, self.order, self.sampled_regions)[0]
            for one, target in zip(proposals, targets, strict=True)
        ]
        return losses | self.region_losses(features, sampled, targets)

    def region_losses(
        self, features: Sequence[Tensor], sampled: Sequence[Regions], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The losses of boxes, masks and keypoints on the regions of each image."""
        regions = self.regions(features, [each.boxes for each in sampled])
        logits, deltas = self.box_predictor(self.box_vectors(regions))
        losses = box_losses(logits, deltas, sampled, targets, self.beta)
        boxes = [each.boxes[: each.foreground] for each in sampled]
        if self.keypoint_head is not None:
            points = torch.cat([keypoints_of(target, each) for target, each in zip(targets, sampled, strict=True)])
            heatmaps = self.keypoint_head(self.mask_regions(features, boxes))
            losses["loss_keypoint"] = keypoint_loss(heatmaps, points, torch.cat(boxes))
        if self.mask_head is None:
            return losses
        classes = torch.cat([each.classes for each in sampled])
        foreground = classes < self.num_classes
        inputs = regions[foreground] if self.shares_regions else self.mask_regions(features, boxes)
        mask_logits = self.mask_head(inputs)
        masks = [crop(target, each, mask_logits.shape[-1]) for target, each in zip(targets, sampled, strict=True)]
        return losses | {"loss_mask": mask_loss(mask_logits, classes[foreground], torch.cat(masks))}

    @torch.no_grad()
    def detect(
        self, features: list[Tensor], image_sizes: Sequence[Size], output_sizes: Sequence[Size]
    ) -> list[Detections]:
        """The detections of each image, scaled to its output size."""
        objectness, moves = self.rpn(features)
        proposed = self.rpn.propose(self.rpn.anchors(features), objectness, moves, image_sizes)
        proposals = [one.boxes for one in proposed]
        logits, deltas = self.box_predictor(self.box_vectors(self.regions(features, proposals)))
        found = detections(logits, deltas, proposals, image_sizes)
        if self.keypoint_head is not None:
            boxes = [each.boxes for each in found]
            located = locate(self.keypoint_head(self.mask_regions(features, boxes)), torch.cat(boxes))
            for each, points in zip(found, located.split([len(each) for each in found]), strict=True):
                each.keypoints = points
        probabilities = self.mask_probabilities(features, found)
        return [scale(*one) for one in zip(found, probabilities, image_sizes, output_sizes, strict=True)]

    def mask_probabilities(self, features: Sequence[Tensor], found: Sequence[Detections]) -> Sequence[Tensor | None]:
        """The mask of each detection within its box, float32 (n, m, m), for each image; None without a mask head."""
        if self.mask_head is None:
            return [None] * len(found)
        logits = self.mask_head(self.mask_regions(features, [each.boxes for each in found]))
        classes = torch.cat([each.classes for each in found])
        chosen = logits[torch.arange(len(classes), device=classes.device), classes]
        masks: Sequence[Tensor] = chosen.sigmoid().split([len(each) for each in found])
        return masks


def crop(target: Target, regions: Regions, size: int) -> Tensor:
    """The true masks within the foreground boxes of an image: bool (f, size, size)."""
    boxes, objects = regions.boxes[: regions.foreground], regions.objects[: regions.foreground]
    assert target.masks is not None, "a detector with masks needs targets with masks"
    if isinstance(target.masks, Tensor):
        return crop_bitmaps(target.masks[objects], boxes, size)
    masks = crop_polygons([target.masks[number] for number in objects.tolist()], boxes, size)
    return masks.to(boxes.device)


def keypoints_of(target: Target, regions: Regions) -> Tensor:
    """The true keypoints of the foreground boxes of an image: float32 (f, k, 3)."""
    assert target.keypoints is not None, "a detector with keypoints needs targets with keypoints"
    return target.keypoints[regions.objects[: regions.foreground]]


def scale(found: Detections, probabilities: Tensor | None, size: Size, output: Size) -> Detections:
    """Detections at the network's size, scaled to the output's, those without area left out, masks pasted."""
    y, x = (new / old for new, old in zip(output, size, strict=True))
    boxes = clip(found.boxes * found.boxes.new_tensor([x, y, x, y]), output)
    kept = has_area(boxes)
    masks = None if probabilities is None else paste_masks(probabilities[kept], boxes[kept], *output)
    keypoints = None if found.keypoints is None else found.keypoints[kept] * boxes.new_tensor([x, y, 1])
    return Detections(boxes[kept], found.scores[kept], found.classes[kept], masks, keypoints)
