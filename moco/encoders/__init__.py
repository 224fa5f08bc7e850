"""Encoders: images in, features out; and their weights, read and written."""

from moco.encoders.build import build_encoder
from moco.encoders.files import Weights, read_file
from moco.encoders.tiny import TinyResNet
from moco.encoders.vit import patch_projection
from moco.encoders.weights import Loaded, fill, load_encoder, read_arch, save_encoder

__all__ = [
    "Loaded",
    "TinyResNet",
    "Weights",
    "build_encoder",
    "fill",
    "load_encoder",
    "patch_projection",
    "read_arch",
    "read_file",
    "save_encoder",
]
