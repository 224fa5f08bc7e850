"""Weights that torchvision, timm and the Hugging Face hub hand out, downloaded and cached by their own libraries."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision import models

from moco.encoders.build import OURS, TORCHVISION, require_timm, unknown
from moco.encoders.description import Normalisation, known, three_numbers
from moco.encoders.files import HEADER, Weights, read_file
from moco.runtime.errors import UserError, one_line

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
RESNETS = ("resnet", "resnext", "wide_resnet")
"""Families whose tensors have the same names in timm as in torchvision."""


def read_torchvision(spec: str) -> Weights:
    """`torchvision:NAME[:WEIGHTS]`, WEIGHTS as torchvision names them (IMAGENET1K_V1), its DEFAULT if not given.

    Raises:
        UserError: no such model or weights, or they are not there and cannot be downloaded.
    """
    name, _, version = spec.removeprefix("torchvision:").partition(":")
    if name not in TORCHVISION:
        raise unknown(name, None)
    versions = models.get_model_weights(name)
    if (version or "DEFAULT") not in versions.__members__:
        there = ", ".join(weights.name for weights in versions) or "none"
        raise UserError(f"{spec}: torchvision has no such weights for {name}: there are {there}")
    chosen = versions[version or "DEFAULT"]
    try:
        # torch.hub keeps what it has downloaded; check_hash applies to what it downloads.
        state = chosen.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the disk, or the file
        kept = Path(torch.hub.get_dir()) / "checkpoints"
        raise _not_there(spec, f"{chosen.url} cannot be downloaded, and is not in {kept}", error) from error
    transform = chosen.transforms()
    mean, std = (getattr(transform, name, None) for name in ("mean", "std"))
    return Weights(spec, state, name, mean=three_numbers(mean), std=three_numbers(std))


def read_timm(spec: str) -> Weights:
    """`timm:NAME`, NAME with or without the weights' tag (`resnet50.a1_in1k`).

    Raises:
        UserError: timm is not installed, has no such model, or its weights are not there and cannot be downloaded.
    """
    timm, name = _timm_model(spec)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # what timm raises is its own affair
        raise _not_there(spec, "its weights are neither in timm's cache nor can be downloaded", error) from error
    mean, std = _normalisation(getattr(model, "pretrained_cfg", None))
    return Weights(spec, model.state_dict(), spec, attention_heads(model), mean, std)


def _timm_model(spec: str) -> tuple[ModuleType, str]:
    """timm, and the name of `timm:NAME` there. Raises UserError without timm, or if it has no such model."""
    timm, name = require_timm(spec), spec.removeprefix("timm:")
    if not timm.is_model(name):
        raise unknown(spec, timm)
    return timm, name


def timm_normalisation(spec: str) -> Normalisation | None:
    """Mean and standard deviation of `timm:NAME`, without its weights. Raises UserError as `read_timm`."""
    timm, name = _timm_model(spec)
    config = timm.get_pretrained_cfg(name)
    mean, std = _normalisation(config.to_dict() if config is not None else None)
    return None if mean is None or std is None else (mean, std)


def read_hub(spec: str) -> Weights:
    """`hf:OWNER/NAME` of the Hugging Face hub, or `hf:FOLDER`: model.safetensors and config.json, as timm writes them.

    Raises:
        UserError: huggingface_hub is not installed, or there are no weights there.
    """
    name = spec.removeprefix("hf:")
    files = [Path(name) / file for file in HUB_FILES]
    if Path(name).is_dir():
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise UserError(f"{spec}: the folder holds no {' or '.join(HUB_FILES)}")
        config: Path | None = Path(name) / "config.json"
    else:
        found, config = _download(spec, name)
    settings = _read_json(config)
    arch = settings.get("architecture")
    mean, std = _normalisation(settings.get("pretrained_cfg"))
    encoder = _encoder_name(arch) if isinstance(arch, str) else None
    weights = replace(read_file(found), source=spec, encoder=encoder, mean=mean, std=std)
    return replace(weights, **known(settings.get(HEADER)))


def attention_heads(encoder: nn.Module) -> int | None:
    """Attention heads of a ViT's block, torchvision's or timm's; None where there is no attention."""
    for module in encoder.modules():
        heads = getattr(module, "num_heads", None)
        if isinstance(heads, int) and (isinstance(module, nn.MultiheadAttention) or hasattr(module, "qkv")):
            return heads
    return None


def _download(spec: str, name: str) -> tuple[Path, Path | None]:
    """The files of weights and of settings in the hub's cache; the latter may be absent."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{spec} needs huggingface_hub: pip install 'momentum-contrast[hf]'") from error
    errors: dict[str, Exception] = {}
    paths: dict[str, Path] = {}
    for file in (*HUB_FILES, "config.json"):
        if file == HUB_FILES[1] and paths:
            continue
        try:
            paths[file] = Path(huggingface_hub.hf_hub_download(name, file))
        except Exception as error:  # of the network, the name, access
            errors[file] = error
    found = next((paths[file] for file in HUB_FILES if file in paths), None)
    if found is None:
        first = errors[HUB_FILES[0]]
        raise _not_there(spec, "its weights are neither in the hub's cache nor can be downloaded", first) from first
    return found, paths.get("config.json")


def _encoder_name(arch: str) -> str:
    """timm's name of an architecture, for `build_encoder`."""
    ours = arch in OURS or (arch in TORCHVISION and arch.startswith(RESNETS))
    return arch if ours else f"timm:{arch}"


def torchvision_name(encoder: str) -> str:
    """torchvision's name of a ResNet of timm's (`timm:resnet50.a1_in1k`), which has the same layers and tensors; any
    other encoder's name as it is."""
    arch = encoder.removeprefix("timm:").partition(".")[0]
    return arch if encoder.startswith("timm:") and not _encoder_name(arch).startswith("timm:") else encoder


def _read_json(path: Path | None) -> Mapping[str, Any]:
    if path is None or not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    return values if isinstance(values, dict) else {}


def _normalisation(config: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    values = config if isinstance(config, Mapping) else {}
    return three_numbers(values.get("mean")), three_numbers(values.get("std"))


def _not_there(spec: str, what: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{spec}: {what}: {reason}")
