"""A file of weights, read without executing anything in it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from moco.encoders.description import Description, known
from moco.runtime.errors import UserError

WRAPPERS = (
    "mechanism",  # our checkpoints
    "state_dict",
    "model_state_dict",
    "classy_state_dict",  # VISSL's: classy_state_dict, base_model, model, trunk
    "base_model",
    "model",
    "trunk",
    "teacher",
    "student",
)
"""Under which keys the tensors lie in a checkpoint; of several, the first."""
V3 = ("module.base_encoder.", "module.momentum_encoder.")
V3_VITS = {"vit_small": "vit_s_16", "vit_base": "vit_b_16"}
"""The names of MoCo v3's released ViTs, and those of `build_encoder`."""
LINEAR_CLASSIFIERS = ("module.fc.weight", "module.head.weight", "fc.weight", "head.weight")
HEADER = "moco"
"""The entry of a safetensors file's header that holds an encoder's description as JSON."""
NAMED = 3  # keys of a kind that a message names


@dataclass(frozen=True)
class Weights:
    """Tensors under the names that their source gives them, and what else is known of their encoder."""

    source: str
    """The file, or where else they come from, as messages name it."""
    tensors: Mapping[str, Tensor]
    encoder: str | None = None
    """Its name for `build_encoder`, if the source gives it."""
    heads: int | None = None
    """Attention heads of a block, where known: ViTs with other heads have tensors of the same shapes."""
    mean: tuple[float, ...] | None = None
    """What images were normalised by, of RGB values in 0..1; None: not known, and taken to be ImageNet's."""
    std: tuple[float, ...] | None = None
    small_stem: bool = False
    """Of its `build_encoder`, if the source gives it, as what `moco export` writes does."""
    image_size: int | None = None
    """Height and width in pixels of the images that it was trained on, if the source gives it."""


def read_file(path: Path) -> Weights:
    """The weights in a file that torch.save or safetensors (*.safetensors) wrote, without executing anything in it.

    Raises:
        UserError: the file cannot be read, holds no weights, or a linear classifier trained on a frozen encoder.
    """
    content = read_content(path)
    state = _unwrapped(content)
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} is no checkpoint: it holds no weights, but {some(list(content)) or 'nothing'}")
    _refuse_linear(path, content, tensors)
    arch = content.get("arch")
    name = arch if isinstance(arch, str) else None
    is_v3_vit = any(key.startswith(V3) and ".blocks.0.attn." in key for key in tensors)
    if is_v3_vit:
        name = V3_VITS.get(name or "", name)
    weights = Weights(str(path), tensors, name, heads=12 if is_v3_vit else None)  # all of MoCo v3's ViTs have 12
    return replace(weights, **read_description(path)) if path.suffix == ".safetensors" else weights


def read_description(path: Path) -> dict[str, Any]:
    """The fields of `Weights` that the header of a safetensors file gives; those of others' files give none."""
    with safetensors.safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(HEADER)
    try:
        return known(json.loads(text)) if text else {}
    except ValueError:
        return {}


def as_safetensors(tensors: Mapping[str, Tensor], description: Description | None = None) -> bytes:
    """The content of a safetensors file, with the encoder's description in its header if there is one."""
    described = {} if description is None else {HEADER: json.dumps(description.as_values())}
    return safetensors.torch.save(copied(tensors), metadata={"format": "pt", **described})


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and contiguous: safetensors refuses tensors that share memory or lie in it in another order."""
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def read_content(path: Path) -> Mapping[str, Any]:
    """The dict in a file. Raises UserError if it cannot be read, or holds more than tensors and plain values."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise UserError(f"{path} cannot be read as weights: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is no checkpoint: it holds a {type(content).__name__} in place of a dict")
    return content


def some(names: list[Any]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


def _reason(error: Exception) -> str:
    """One line for an error of torch.load, whose own text advises to execute what is in the file."""
    named = re.search(r"GLOBAL ([\w.]+) (?:was not an allowed|whose module)", str(error))
    if named:
        return f"it names {named[1]}, which is more than tensors, and nothing in a file is executed"
    return "it is cut short, no checkpoint, or holds more than tensors"


def _unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dict of tensors in a checkpoint."""
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = content[wrapper]
    return content


def _refuse_linear(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuses what the released code's linear protocol saved: its optimiser has the classifier's two tensors alone."""
    classifier = next((key for key in LINEAR_CLASSIFIERS if key in tensors), None)
    optimizer = content.get("optimizer")
    groups = optimizer.get("param_groups", []) if isinstance(optimizer, Mapping) else []
    trained = sum(len(group.get("params", [])) for group in groups)
    if classifier and (trained == 2 or path.name.startswith("linear")):
        raise UserError(
            f"{path} holds a linear classifier ({classifier}) that was trained with labels on a frozen encoder: "
            "give the checkpoint of the pre-training itself"
        )
