"""What an export is, and how it is checked."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco.encoders.description import Description
from moco.runtime.errors import UserError

TOLERANCE = 1e-4
"""By how much features may differ, as a share of the largest: each library rounds in an order of its own."""


@dataclass(frozen=True)
class Exported:
    """The files of an export, before they are written."""

    files: Mapping[Path, bytes]
    usage: str
    """How the library loads them: lines of Python, or what a person does."""
    difference: float | None = None
    """Largest difference of a feature, as a share of the largest feature, in the library; None: not compared here."""


@torch.no_grad()
def compare(encoder: nn.Module, theirs: Callable[[Tensor], Tensor], shape: tuple[int, ...], library: str) -> float:
    """The largest difference of two encoders' features of random images, as a share of the largest feature.

    Args:
        encoder: ours, in evaluation mode.
        theirs: float32 images to features, of that library.
        shape: of the images, (n, 3, h, w).

    Raises:
        UserError: it is above `TOLERANCE`.
    """
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = encoder(images)
    difference = float((ours - theirs(images)).abs().max() / ours.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise UserError(f"--to {library}: its features differ by {difference:.1g} of the largest: nothing is written")
    return difference


def probe(description: Description) -> tuple[int, ...]:
    """The shape of the images that libraries are compared on."""
    return (2, 3, description.image_size, description.image_size)


@torch.no_grad()
def takes_other_sizes(encoder: nn.Module, size: int) -> bool:
    """Whether the encoder takes images larger than `size` pixels: a ResNet does, most ViTs do not."""
    try:
        encoder(torch.zeros(1, 3, size, size + 32))
    except Exception:  # of whatever type: it depends on the encoder
        return False
    return True


def refuse(library: str, description: Description, reason: str) -> UserError:
    """The error for an encoder that the library cannot express."""
    return UserError(f"--to {library}: {description.label}: {reason}: --to safetensors, onnx and hub take any encoder")


def small_stem_lines(encoder: nn.Module) -> list[str]:
    """Python that gives a ResNet `model` of torchvision or timm our stem for small images."""
    channels = encoder.get_submodule("conv1").out_channels
    return [
        f"model.conv1 = torch.nn.Conv2d(3, {channels}, kernel_size=3, padding=1, bias=False)",
        "model.maxpool = torch.nn.Identity()",
    ]


def torch_file(content: dict[str, Any]) -> bytes:
    """What torch.save writes, which `torch.load(weights_only=True)` reads."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
