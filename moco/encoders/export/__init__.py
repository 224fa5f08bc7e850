"""An encoder in the form of another library, one file a form."""

from moco.encoders.export.detectron2 import to_detectron2
from moco.encoders.export.exported import Exported
from moco.encoders.export.hub import FILES as HUB_FILES
from moco.encoders.export.hub import push_to_hub, to_hub
from moco.encoders.export.mmdet import to_mmdet
from moco.encoders.export.onnx import to_onnx
from moco.encoders.export.safetensors import to_safetensors
from moco.encoders.export.timm import to_timm
from moco.encoders.export.torchvision import as_torchvision, to_torchvision

__all__ = [
    "HUB_FILES",
    "Exported",
    "as_torchvision",
    "push_to_hub",
    "to_detectron2",
    "to_hub",
    "to_mmdet",
    "to_onnx",
    "to_safetensors",
    "to_timm",
    "to_torchvision",
]
