"""Encoders: images in, features out; and their weights, read and written."""

from moco.encoders.build import build_encoder
from moco.encoders.description import Description, Normalisation
from moco.encoders.files import Weights, read_file
from moco.encoders.tiny import TinyResNet
from moco.encoders.vit import fixed_size, patch_projection
from moco.encoders.weights import Loaded, fill, read_arch, save_encoder

__all__ = [
    "Description",
    "Loaded",
    "Normalisation",
    "TinyResNet",
    "Weights",
    "build_encoder",
    "fill",
    "fixed_size",
    "patch_projection",
    "read_arch",
    "read_file",
    "save_encoder",
]
