"""The mechanism that a configuration describes."""

from dataclasses import replace

import torch
from torch import nn

from moco.config import Config
from moco.contrast import EndToEnd, MemoryBank, MoCo, MoCoV3
from moco.device import Device
from moco.encoders import build_encoder, patch_projection
from moco.errors import UserError

Mechanism = MoCo | EndToEnd | MemoryBank | MoCoV3


def build_mechanism(config: Config, images: int, steps: int, device: Device) -> Mechanism:
    """The mechanism of a run, with random weights that are a function of its seed.

    Args:
        images: how many are trained on.
        steps: how many the run takes.

    Raises:
        UserError: an encoder that does not fit, or a memory bank of so many images that does not.
    """
    torch.manual_seed(config.training.seed)
    encoder = build_encoder(config.encoder.encoder, config.encoder.small_stem, config.encoder.freeze_patches)
    if config.contrast.mechanism == "memory-bank":
        _check_memory(images, config.contrast.dim, device)
    try:
        return _build(config, encoder, images, steps)
    except ValueError as error:
        raise UserError(str(error)) from error


def _build(config: Config, encoder: nn.Module, images: int, steps: int) -> Mechanism:
    contrast = config.contrast
    dim, temperature, head, bn_group = contrast.dim, contrast.temperature, contrast.head, contrast.bn_group
    symmetric, shuffle = contrast.symmetric, contrast.shuffle
    if contrast.mechanism == "end-to-end":
        return EndToEnd(encoder, dim, temperature, head=head, symmetric=symmetric, bn_group=bn_group, shuffle=shuffle)
    if contrast.mechanism == "memory-bank":
        draws, momentum = contrast.queue_size, contrast.bank_momentum
        return MemoryBank(encoder, images, dim, draws, momentum, temperature, head=head, bn_group=bn_group)
    if contrast.mechanism == "moco-v3":
        is_vit = patch_projection(encoder) is not None
        return MoCoV3(
            encoder,
            dim,
            contrast.momentum,
            temperature,
            total_steps=steps,
            hidden=contrast.hidden,
            projector_layers=3 if is_vit else 2,
            predictor_bn=is_vit,
        )
    return MoCo(
        encoder,
        dim,
        contrast.queue_size,
        contrast.momentum,
        temperature,
        head=head,
        symmetric=symmetric,
        bn_group=bn_group,
        shuffle=shuffle,
    )


def _check_memory(images: int, dim: int, device: Device) -> None:
    """Of the bank, which is made on the CPU, goes to the device, and stands in checkpoints."""
    needed = images * dim * 4
    for place in {device.device.type: device, "cpu": replace(device, device=torch.device("cpu"))}.values():
        if needed > (free := place.free_bytes()):
            raise UserError(
                f"--mechanism memory-bank: a vector for each of {images:,} images takes {needed / 1e9:,.3g} GB, "
                f"{place.device} has {free / 1e9:,.3g} GB free: a lower --dim, or --mechanism moco, whose "
                "dictionary does not grow with the data"
            )
