"""The mechanism that a configuration describes."""

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from moco.contrast import EndToEnd, Mechanism, MemoryBank, MoCo, MoCoV3
from moco.data import Source
from moco.data.loading.gpu import faster_on_gpu
from moco.encoders import Loaded, build_encoder, fixed_size, patch_projection
from moco.runs.config import Compute, Config
from moco.runs.weights import load_weights
from moco.runtime.device import Device, choose_device, worker_processes
from moco.runtime.errors import UserError, one_line
from moco.runtime.ranks import rank, world_size
from moco.views import Views, get_pretext


def device_of(compute: Compute) -> Device:
    """The device that a configuration names. Raises UserError if it is not there, or cannot do what is wanted."""
    device = choose_device(compute.device, compute.precision, compute.channels_last)
    if compute.cuda_graph and device.device.type != "cuda":
        raise UserError("--cuda-graph: there is no CUDA GPU to record on")
    if compute.decoder == "gpu" and device.device.type != "cuda":
        raise UserError("--decoder gpu: there is no CUDA GPU to decode on")
    return device


def is_recorded(compute: Compute, device: Device, mechanism: nn.Module) -> bool:
    """Whether a step is recorded as a CUDA graph; what timm's encoders do at a step is not known here."""
    if compute.cuda_graph is not None:
        return compute.cuda_graph
    from_timm = any(type(module).__module__.startswith("timm.") for module in mechanism.modules())
    return device.device.type == "cuda" and world_size() == 1 and not from_timm


def resolved(config: Config, source: Source, device: Device) -> Config:
    """The configuration with what is on `auto` decided for this device and data set, as a run stores it."""
    compute = config.compute
    if compute.precision == "auto":
        compute = replace(compute, precision="bf16" if device.bf16 else "fp32")
    if compute.decoder == "auto":
        compute = replace(compute, decoder=_faster_decoder(config, source, device))
    return replace(config, compute=compute)


def _faster_decoder(config: Config, source: Source, device: Device) -> Literal["cpu", "gpu"]:
    views = Views(config.views.views, config.views.image_size, config.training.seed)
    workers = worker_processes(config.compute.workers, device.device)
    return "gpu" if faster_on_gpu(source.train, views, device.device, workers) else "cpu"


def build_mechanism(config: Config, images: int, steps: int, device: Device) -> Mechanism:
    """The mechanism of a run, with random weights that are a function of its seed.

    Args:
        images: how many the data set has.
        steps: how many the run takes.

    Raises:
        UserError: options that do not fit together, or a memory bank of so many images that does not fit.
    """
    torch.manual_seed(config.training.seed)
    encoder = build_encoder(config.encoder.encoder, config.encoder.small_stem, config.encoder.freeze_patches)
    name = config.contrast.mechanism
    try:
        mechanism = BUILDERS[name](config, encoder, images, steps, device)
    except ValueError as error:
        raise UserError(f"--mechanism {name}: {error}") from error
    if config.training.accumulation_steps > 1 and not hasattr(mechanism, "accumulate"):
        raise UserError(
            f"--accumulation-steps {config.training.accumulation_steps}: --mechanism {name} uses the whole mini-batch "
            "as its dictionary: --accumulation-steps 1"
        )
    # Ranks start with the same weights, but what they draw at random in training (dropout) differs. Their seeds differ
    # in the lower 32 bits too, the only ones that the CPU's generator takes.
    torch.manual_seed((config.training.seed + (rank() + 1) * 0x9E3779B97F4A7C15) % 2**63)
    return mechanism


def start_from(mechanism: Mechanism, config: Config) -> Loaded:
    """Fills the encoder of a mechanism with the weights of --init, as `load_weights`; the key encoder becomes its copy.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    seen = get_pretext(config.views.views)[0].normalisation
    loaded = load_weights(config.encoder.init, mechanism.query.get_submodule("backbone"), seen)
    if isinstance(key := getattr(mechanism, "key", None), nn.Module):
        key.load_state_dict(mechanism.query.state_dict())
    return loaded


def check_mechanism(config: Config, new: bool) -> None:
    """Raises UserError for a mechanism that cannot be built, or an encoder that cannot take the views' images.

    Of a `new` run, also for weights to start from that are not there or do not fit.
    """
    options, views = config.encoder, config.views
    mechanism = build_mechanism(config, 2, 1, Device(torch.device("cpu"), bf16=False, channels_last=False))
    if new:
        start_from(mechanism, config)
    encoder = mechanism.query.get_submodule("backbone").eval()
    sizes = ("--image-size", views.image_size, views.image_size), ("--start-scale", views.start_scale, views.start_size)
    for flag, given, size in sizes:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, 3, size, size))
        except Exception as error:  # of whatever type: it depends on the encoder
            expected = fixed_size(encoder)
            reason = one_line(error) if expected in (None, size) else f"it takes {expected} x {expected} pixels only"
            raise UserError(f"{flag} {given}: {options.encoder} cannot take images of this size: {reason}") from error


def _moco(config: Config, encoder: nn.Module, images: int, steps: int, device: Device) -> Mechanism:
    options = config.contrast
    return MoCo(
        encoder,
        options.dim,
        options.queue_size,
        options.key_momentum,
        options.temperature,
        head=options.head,
        symmetric=options.symmetric,
        bn_group=options.bn_group,
        shuffle=options.shuffle,
    )


def _end_to_end(config: Config, encoder: nn.Module, images: int, steps: int, device: Device) -> Mechanism:
    options = config.contrast
    return EndToEnd(
        encoder,
        options.dim,
        options.temperature,
        head=options.head,
        symmetric=options.symmetric,
        bn_group=options.bn_group,
        shuffle=options.shuffle,
    )


def _memory_bank(config: Config, encoder: nn.Module, images: int, steps: int, device: Device) -> Mechanism:
    options = config.contrast
    if options.symmetric:
        raise ValueError("has one view of an image: --no-symmetric")
    _check_memory(images, options.dim, device)
    return MemoryBank(
        encoder,
        images,
        options.dim,
        options.queue_size,
        options.bank_momentum,
        options.temperature,
        head=options.head,
        bn_group=options.bn_group,
    )


def _moco_v3(config: Config, encoder: nn.Module, images: int, steps: int, device: Device) -> Mechanism:
    options, is_vit = config.contrast, patch_projection(encoder) is not None
    return MoCoV3(
        encoder,
        options.dim,
        options.key_momentum,
        options.temperature,
        total_steps=steps,
        hidden=options.hidden,
        projector_layers=3 if is_vit else 2,
        predictor_bn=is_vit,
    )


BUILDERS = {"moco": _moco, "end-to-end": _end_to_end, "memory-bank": _memory_bank, "moco-v3": _moco_v3}
"""By the name of --mechanism."""


def _check_memory(images: int, dim: int, device: Device) -> None:
    """Whether the bank fits: it is made on the CPU, and moved to the device."""
    needed = images * dim * 4
    for place in {device.device.type: device, "cpu": replace(device, device=torch.device("cpu"))}.values():
        if needed > (free := place.free_bytes()):
            raise UserError(
                f"--mechanism memory-bank: a vector for each of {images:,} images takes {needed / 1e9:,.3g} GB, "
                f"{place.device} has {free / 1e9:,.3g} GB free: a lower --dim, or --mechanism moco, whose "
                "dictionary does not grow with the data"
            )
