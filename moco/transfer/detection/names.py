"""The names of a detector's tensors here and in Detectron2, both ways."""

from collections.abc import Mapping

from torch import Tensor

from moco.encoders.export.detectron2 import Rules, encoder_name, renamed
from moco.transfer.detection.detector import Detector
from moco.transfer.detection.structures import C4, FPN

HEADS: Rules = [
    (r"extra_norm\.", "roi_heads.res5.norm."),
    (r"rpn\.conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn\.objectness\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"pyramid\.(lateral|output)\.(\d)\.0\.", lambda m: f"backbone.fpn_{m[1]}{int(m[2]) + 2}."),
    (r"pyramid\.(lateral|output)\.(\d)\.1\.", lambda m: f"backbone.fpn_{m[1]}{int(m[2]) + 2}.norm."),
    (r"neck\.0\.", "backbone.neck."),
    (r"neck\.1\.", "backbone.neck.norm."),
    (r"box_head\.convs\.(\d)\.0\.", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}."),
    (r"box_head\.convs\.(\d)\.1\.", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}.norm."),
    (r"box_head\.fcs\.(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}."),
    (r"box_predictor\.classes\.", "roi_heads.box_predictor.cls_score."),
    (r"box_predictor\.deltas\.", "roi_heads.box_predictor.bbox_pred."),
    (r"mask_head\.convs\.(\d)\.0\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}."),
    (r"mask_head\.convs\.(\d)\.1\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.norm."),
    (r"mask_head\.(deconv|predictor)\.", lambda m: f"roi_heads.mask_head.{m[1]}."),
    (r"keypoint_head\.convs\.(\d)\.", lambda m: f"roi_heads.keypoint_head.conv_fcn{int(m[1]) + 1}."),
    (r"keypoint_head\.deconv\.", "roi_heads.keypoint_head.score_lowres."),
]


def detectron2_name(detector: Detector, name: str) -> str:
    """The name in Detectron2 of a tensor in the detector's state dict. Its own are refused with KeyError."""
    if not name.startswith("encoder."):
        return renamed(name, HEADS)
    short = encoder_name(name.removeprefix("encoder."))
    if isinstance(detector, C4) and short.startswith("res5."):
        return f"roi_heads.{short}"
    return f"backbone.bottom_up.{short}" if isinstance(detector, FPN) else f"backbone.{short}"


def to_detectron2(detector: Detector) -> dict[str, Tensor]:
    """The detector's state dict under Detectron2's names."""
    return {detectron2_name(detector, name): value for name, value in detector.state_dict().items()}


def from_detectron2(detector: Detector, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detectron2's state dict under the detector's names. KeyError: a tensor is missing."""
    return {name: state[detectron2_name(detector, name)] for name in detector.state_dict()}
