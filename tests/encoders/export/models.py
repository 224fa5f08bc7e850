"""Encoders that an export must not confuse with freshly made ones."""

import io
from contextlib import redirect_stdout

import torch
from torch import nn

from moco.encoders import Description, build_encoder
from moco.encoders.export import Exported


def trained(name: str, small_stem: bool = False) -> nn.Module:
    """With BN statistics and parameters as no new one has them."""
    torch.manual_seed(0)
    encoder = build_encoder(name, small_stem)
    for key, value in encoder.state_dict().items():
        if "running_var" in key or (value.ndim == 1 and key.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif "running_mean" in key or key.endswith("bias"):
            value.normal_(std=0.1)
    return encoder.eval()


def described(name: str, small_stem: bool = False) -> Description:
    size = 224 if "vit" in name else 32
    return Description(name, small_stem, size, heads=12 if "vit" in name else None)


def write(exported: Exported) -> None:
    for path, content in exported.files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def follow(exported: Exported) -> dict[str, object]:
    """What the lines that the command prints give, as a user runs them."""
    names: dict[str, object] = {}
    with redirect_stdout(io.StringIO()):
        exec(exported.usage, names)
    return names


@torch.no_grad()
def assert_same_features(ours: nn.Module, theirs: nn.Module, size: int) -> None:
    images = torch.randn(3, 3, size, size)
    expected = ours(images)
    torch.testing.assert_close(theirs.eval()(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
