"""The names that others give to an encoder's tensors, converted to those of the encoder."""

import re
from collections.abc import Callable, Collection, Iterable

PREFIXES = {
    "module",  # DistributedDataParallel
    "_orig_mod",  # torch.compile
    "query",  # our checkpoints: query.backbone
    "encoder_q",  # MoCo v1 and v2; OpenSelfSup: encoder_q.0
    "base_encoder",  # MoCo v3
    "momentum_encoder",
    "backbone",  # solo-learn, lightly, mmselfsup, DINO
    "student_backbone",
    "teacher_backbone",
    "student",
    "teacher",
    "encoder",
    "model",
    "net",
    "trunk",  # VISSL: trunk._feature_blocks
    "_feature_blocks",
    "0",
}
"""What may stand before an encoder's own names."""
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""A ResNet's children as nn.Sequential(*resnet.children()) numbers them, which is how lightly's examples make one."""
VIT = (
    (r"cls_token", "class_token"),
    (r"pos_embed", "encoder.pos_embedding"),
    (r"patch_embed\.proj\.", "conv_proj."),
    (r"norm\.", "encoder.ln."),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.layers.encoder_layer_\1.ln_\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.encoder_layer_\1.self_attention.out_proj."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.encoder_layer_\1.mlp.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.encoder_layer_\1.mlp.3."),
)
"""A ViT's tensors as timm, MoCo v3 and DINO name them, and as torchvision does."""


def convert(names: Iterable[str], wanted: Collection[str]) -> tuple[str, dict[str, str]]:
    """Which tensors of a file are the encoder's.

    Of all prefixes in the file and all ways to rename, the one that finds most of the encoder's tensors; of equal ones
    that with no momentum encoder, then the longest prefix.

    Args:
        names: those of the file.
        wanted: those of the encoder.

    Returns:
        The prefix (`module.encoder_q.`), and for each name behind it in the encoder's spelling that in the file; names
        there that the encoder does not have are among them (heads, or what another encoder has).
    """
    names = list(names)
    candidates = [
        (prefix, {rename(name.removeprefix(prefix)): name for name in names if name.startswith(prefix)})
        for prefix in _prefixes(names)
        for rename in RENAMINGS
    ]

    def fit(candidate: tuple[str, dict[str, str]]) -> tuple[int, bool, int]:
        prefix, renamed = candidate
        return sum(name in wanted for name in renamed), "momentum" not in prefix, prefix.count(".")

    return max(candidates, key=fit)


def group(name: str, prefix: str) -> str:
    """What a tensor belongs to: the first word in which its name differs from the encoder's prefix, `fc` or `queue`."""
    words, before = name.split("."), prefix.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(words, before, strict=False)) if a != b), len(before))
    return words[min(shared, len(words) - 1)]


def _prefixes(names: Iterable[str]) -> list[str]:
    """All that begin a name and consist of known words, the empty one first."""
    found = {"": None}
    for name in names:
        prefix = ""
        for word in name.split(".")[:-1]:
            if word not in PREFIXES:
                break
            prefix += f"{word}."
            found[prefix] = None
    return list(found)


def _as_it_is(name: str) -> str:
    return name


def from_timm_vit(name: str) -> str:
    """torchvision's name of a ViT's tensor that timm calls `name`; of any other, the same name."""
    for pattern, replacement in VIT:
        renamed, number = re.subn(f"^{pattern}", replacement, name)
        if number:
            return renamed
    return name


def _from_children(name: str) -> str:
    child, dot, rest = name.partition(".")
    return CHILDREN.get(child, child) + dot + rest


RENAMINGS: tuple[Callable[[str], str], ...] = (_as_it_is, from_timm_vit, _from_children)
