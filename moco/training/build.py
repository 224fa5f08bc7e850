"""The mechanism that a configuration describes."""

import torch

from moco.config import Config
from moco.contrast import EndToEnd, MemoryBank, MoCo
from moco.device import Device
from moco.encoders import build_encoder
from moco.errors import UserError


def build_mechanism(config: Config, images: int, device: Device) -> MoCo | EndToEnd | MemoryBank:
    """The mechanism that a configuration describes, with random weights that are a function of its seed.

    Raises UserError for an encoder that does not fit, or a memory bank of so many images that does not.
    """
    torch.manual_seed(config.training.seed)
    contrast = config.contrast
    encoder = build_encoder(config.encoder.encoder, config.encoder.small_stem)
    dim, temperature, head, bn_group = contrast.dim, contrast.temperature, contrast.head, contrast.bn_group
    try:
        if contrast.mechanism == "end-to-end":
            return EndToEnd(
                encoder,
                dim,
                temperature,
                head=head,
                symmetric=contrast.symmetric,
                bn_group=bn_group,
                shuffle=contrast.shuffle,
            )
        if contrast.mechanism == "memory-bank":
            needed, free = images * dim * 4, device.free_bytes()
            if needed > free:
                raise UserError(
                    f"--mechanism memory-bank: a vector for each of {images:,} images takes {needed / 1e9:,.3g} GB, "
                    f"{device.device} has {free / 1e9:,.3g} GB free: a lower --dim, or --mechanism moco, whose "
                    "dictionary does not grow with the data"
                )
            return MemoryBank(
                encoder,
                images,
                dim,
                contrast.queue_size,
                contrast.bank_momentum,
                temperature,
                head=head,
                bn_group=bn_group,
            )
        return MoCo(
            encoder,
            dim,
            contrast.queue_size,
            contrast.momentum,
            temperature,
            head=head,
            symmetric=contrast.symmetric,
            bn_group=bn_group,
            shuffle=contrast.shuffle,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
