"""Momentum contrast, whole: visual features from images without labels (He et al., CVPR 2020)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moco.contrast import EndToEnd, InfoNCE, MemoryBank, MoCo, MoCoV3, Queue, info_nce, momentum_update
    from moco.encoders import build_encoder, save_encoder
    from moco.evaluation import load_encoder
    from moco.runs.weights import load_weights
    from moco.runtime.errors import UserError
    from moco.transfer.classification.load import load_classifier
    from moco.transfer.detection.load import load_detector
    from moco.transfer.segmentation.load import load_segmenter
    from moco.views import Views

_HOMES = {
    "EndToEnd": "contrast",
    "InfoNCE": "contrast",
    "MemoryBank": "contrast",
    "MoCo": "contrast",
    "MoCoV3": "contrast",
    "Queue": "contrast",
    "UserError": "runtime.errors",
    "Views": "views",
    "build_encoder": "encoders",
    "info_nce": "contrast",
    "load_classifier": "transfer.classification.load",
    "load_detector": "transfer.detection.load",
    "load_encoder": "evaluation",
    "load_segmenter": "transfer.segmentation.load",
    "load_weights": "runs.weights",
    "momentum_update": "contrast",
    "save_encoder": "encoders",
}
__all__ = [
    "EndToEnd",
    "InfoNCE",
    "MemoryBank",
    "MoCo",
    "MoCoV3",
    "Queue",
    "UserError",
    "Views",
    "build_encoder",
    "info_nce",
    "load_classifier",
    "load_detector",
    "load_encoder",
    "load_segmenter",
    "load_weights",
    "momentum_update",
    "save_encoder",
]


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first used: `moco --help` need not wait for PyTorch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'moco' has no attribute {name!r}")
    return getattr(importlib.import_module(f"moco.{_HOMES[name]}"), name)
