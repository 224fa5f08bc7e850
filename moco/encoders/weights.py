"""An encoder's weights, read and written."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from moco.runtime.errors import UserError
from moco.runtime.files import write_whole

# Where the query encoder lies: in our checkpoints, and in those of the released code (facebookresearch/moco).
PREFIXES = ("query.backbone.", "module.encoder_q.")
# What torchvision and timm call a classifier, and the released code its head: `fc` (v1), `fc.0` and `fc.2` (v2).
CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.")
NAMED = 3  # keys of a kind that a refusal names


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Fills an encoder from a file; an encoder that the file does not fit stays as it was.

    The file is one of
    - a checkpoint of our runs: `{"mechanism": {"query.backbone.*": ...}, ...}`;
    - one of the released code, MoCo v1 or v2: `{"state_dict": {"module.encoder_q.*": ...}, "arch": ..., ...}`;
    - the encoder's state dict itself, as `torch.save` or safetensors (`*.safetensors`) wrote it.

    A head or classifier that the encoder does not have is left out. BN's `num_batches_tracked` may be absent, as in old
    checkpoints: it changes nothing in a BN that has a momentum. Nothing in the file is executed.

    Raises:
        UserError: the file cannot be read or holds no weights; or its keys or shapes are not the encoder's, and which.
    """
    weights = _query_encoder(_read(path), path)
    wanted = encoder.state_dict()
    weights = {key: value for key, value in weights.items() if key in wanted or not key.startswith(CLASSIFIERS)}
    problems = _misfits(weights, wanted)
    if problems:
        raise UserError(f"{path} does not fit the encoder: {'; '.join(problems)}")
    encoder.load_state_dict(weights, strict=False)  # not strict: `num_batches_tracked` may be absent


def read_arch(path: Path) -> str | None:
    """The encoder's name in a checkpoint of the released code (`resnet50`), None in any other file.

    Raises:
        UserError: the file cannot be read.
    """
    arch = _read(path).get("arch")
    return arch if isinstance(arch, str) else None


def save_encoder(encoder: nn.Module, path: Path) -> None:
    """Writes an encoder's state dict as safetensors, whole or not at all: a reader never sees half a file.

    Raises:
        UserError: the name does not end in .safetensors, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as safetensors, so let its name end in .safetensors")
    # Copies: safetensors refuses tensors that share memory or lie in it in another order.
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in encoder.state_dict().items()
    }
    content = safetensors.torch.save(weights, metadata={"format": "pt"})
    write_whole(path, lambda file: file.write(content))


def _read(path: Path) -> Mapping[str, Any]:
    """The dict in a file, without executing anything in it."""
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


def _reason(error: Exception) -> str:
    """One line for an error of torch.load, whose own text advises to execute what is in the file."""
    named = re.search(r"GLOBAL ([\w.]+) (?:was not an allowed|whose module)", str(error))
    if named:
        return f"it names {named[1]}, which is more than tensors, and nothing in a file is executed"
    return "it is cut short, no checkpoint, or holds more than tensors"


def _query_encoder(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a file's query encoder, under the encoder's own keys."""
    state = next((content[key] for key in ("mechanism", "state_dict") if key in content), content)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is no checkpoint: it holds no weights, but {_some(list(content)) or 'nothing'}")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in tensors)), "")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _misfits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps weights from an encoder whose state dict is `wanted`, one line a kind."""
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in wanted]
    reshaped = [
        f"{key} ({_shape(value)} in the file, {_shape(wanted[key])} in the encoder)"
        for key, value in weights.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return [f"{kind}: {_some(keys)}" for kind, keys in kinds.items() if keys]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(keys: list[Any]) -> str:
    """The first few, and how many more."""
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(map(str, keys[:NAMED])) + more
