"""An encoder's weights: filled from a file or a library, and written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import VisionTransformer

from moco.encoders.description import Normalisation
from moco.encoders.files import Weights, as_safetensors, read_content, some
from moco.encoders.names import convert, group
from moco.encoders.published import attention_heads
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole
from moco.views.recipes import IMAGENET

HEADS = {
    *("fc", "classifier", "head", "heads", "head_dist"),  # torchvision, timm; the released code's projector
    *("projector", "projection_head", "prediction_head", "predictor", "prototypes", "neck", "queue", "queue_ptr"),
    *("AuxLogits", "aux1", "aux2"),  # of torchvision's Inception and GoogLeNet
}
"""What may lie behind an encoder in its file, and is left out."""


@dataclass(frozen=True)
class Loaded:
    """What an encoder was filled with. As text, one line."""

    source: str
    tensors: int
    """Of the encoder's state dict, BN's statistics among them."""
    parameters: int
    """Numbers in the encoder's parameters that were loaded, which are all that it has."""
    unused: tuple[str, ...] = ()
    """What else the source holds, such as heads: `fc (4)`."""
    remark: str = ""
    """How its images were normalised, if not by ImageNet's mean and standard deviation."""

    def __str__(self) -> str:
        unused = f"; tensors not used: {', '.join(self.unused)}" if self.unused else ""
        counted = f"{self.tensors:,} tensors, {self.parameters:,} parameters, the whole encoder"
        return f"{self.source}: {counted}{unused}{self.remark}"


def fill(encoder: nn.Module, weights: Weights, normalisation: Normalisation = IMAGENET) -> Loaded:
    """Fills the whole encoder with weights; one that they do not fit stays as it was.

    A head or classifier that the encoder does not have is left out. BN's `num_batches_tracked` may be absent, as in old
    checkpoints: it changes nothing in a BN that has a momentum.

    Args:
        encoder: of `build_encoder`, on any device.
        weights: as `read_file` or a library gives them, under any of the names of `names.convert`.
        normalisation: of the images that the encoder will see; that they had another in training is remarked on.

    Raises:
        UserError: a tensor of the encoder is missing or has another shape; the source has tensors that are neither the
            encoder's nor a head's; a ViT has other attention heads; a value is not finite.
    """
    wanted = encoder.state_dict()
    prefix, names = convert(weights.tensors, wanted)
    body = {new: weights.tensors[old] for new, old in names.items() if new in wanted or new.split(".")[0] not in HEADS}
    problems = _misfits(body, wanted)
    if problems:
        cause = _cause(body, wanted, weights)
        raise UserError(f"{weights.source} does not fit the encoder: {'; '.join(problems)} ({cause})")
    _require_heads(encoder, weights)
    broken = [key for key, value in body.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{weights.source}: not all values are finite: {some(broken)}")
    encoder.load_state_dict(body, strict=False)  # not strict: `num_batches_tracked` may be absent
    parameters = sum(value.numel() for key, value in encoder.named_parameters() if key in body)
    used = {names[key] for key in body}
    unused = _unused([name for name in weights.tensors if name not in used], prefix)
    return Loaded(weights.source, len(body), parameters, unused, _remark(weights, normalisation))


def read_arch(path: Path) -> str | None:
    """The encoder's name in a checkpoint of the released code (`resnet50`), None in any other file.

    Raises:
        UserError: the file cannot be read.
    """
    arch = read_content(path).get("arch")
    return arch if isinstance(arch, str) else None


def save_encoder(encoder: nn.Module, path: Path) -> None:
    """Writes an encoder's state dict as safetensors, whole or not at all: a reader never sees half a file.

    Raises:
        UserError: the name does not end in .safetensors, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as safetensors, so let its name end in .safetensors")
    content = as_safetensors(encoder.state_dict())
    write_whole(path, lambda file: file.write(content))


def _misfits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps weights from an encoder whose state dict is `wanted`, one line a kind."""
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in wanted]
    reshaped = [
        f"{key} ({_shape(weights[key])} in the file, {_shape(wanted[key])} in the encoder)"
        for key in _reshaped(weights, wanted)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return [f"{kind}: {some(keys)}" for kind, keys in kinds.items() if keys]


def _cause(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Weights) -> str:
    """The likely reason why weights do not fit."""
    if any(key.startswith(("stem.conv1.", "res2.0.", "bottom_up.")) for key in weights) and "res2.0" not in wanted:
        return "these are Detectron2's names, and such a file has no colour order: convert it to torchvision's"
    reshaped = _reshaped(weights, wanted)
    if set(weights) - set(wanted) or any(key not in weights for key in wanted if "num_batches" not in key):
        return f"another architecture{f': they are of {source.encoder}' if source.encoder else ''}"
    if reshaped == ["conv1.weight"]:
        small = weights["conv1.weight"].shape[-1] == 3
        return f"another stem: {'--small-stem' if small else '--no-small-stem'}"
    if all("pos_embed" in key for key in reshaped):
        return "positions of another image size"
    same_kernels = all(weights[key].shape[2:] == wanted[key].shape[2:] for key in reshaped)
    return "another width" if same_kernels else "another architecture"


def _reshaped(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [key for key, value in weights.items() if key in wanted and value.shape != wanted[key].shape]


def _require_heads(encoder: nn.Module, weights: Weights) -> None:
    """Refuses a ViT with other attention heads, which all its tensors' shapes would let pass.

    Where they are not known, tensors in timm's names for an encoder in torchvision's have heads of 64 dimensions, as
    those of all but MoCo v3 do.
    """
    there, known = attention_heads(encoder), weights.heads
    if known is None and isinstance(encoder, VisionTransformer):
        qkv = [value for key, value in weights.tensors.items() if key.endswith("blocks.0.attn.qkv.weight")]
        known = qkv[0].shape[1] // 64 if qkv else None
    if None not in (known, there) and known != there:
        raise UserError(
            f"{weights.source} does not fit the encoder: its ViT has {known} attention heads, the encoder {there}: "
            "of width 384, vit_s_16 is MoCo v3's with 12, timm:vit_small_patch16_224 everyone else's with 6"
        )


def _unused(names: list[str], prefix: str) -> tuple[str, ...]:
    """Groups of tensors, each with their number."""
    groups = [group(name, prefix) for name in names]
    return tuple(f"{name} ({groups.count(name)})" for name in dict.fromkeys(groups))


def _remark(weights: Weights, normalisation: Normalisation) -> str:
    theirs = (weights.mean, weights.std)
    if None in theirs or theirs == normalisation:
        return ""
    here = "ImageNet's" if normalisation == IMAGENET else f"mean {normalisation[0]} and std {normalisation[1]}"
    return f"; its images were normalised by mean {weights.mean} and std {weights.std}, here they are by {here}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
