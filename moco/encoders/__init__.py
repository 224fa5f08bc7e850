"""Encoders: images in, features out; and their weights, read and written."""

from moco.encoders.build import build_encoder
from moco.encoders.tiny import TinyResNet
from moco.encoders.vit import patch_projection
from moco.encoders.weights import load_encoder, read_arch, save_encoder

__all__ = ["TinyResNet", "build_encoder", "load_encoder", "patch_projection", "read_arch", "save_encoder"]
