"""An encoder by its name."""

import re
from collections.abc import Callable
from types import ModuleType

from torch import nn
from torchvision import models
from torchvision.models.resnet import ResNet

from moco.encoders.resnet import fuse_blocks, resnet_of_width, resnext50_32x8d, use_small_stem, wide_resnet50
from moco.encoders.tiny import TinyResNet
from moco.encoders.vit import freeze_patches as freeze
from moco.encoders.vit import vit_s_16
from moco.runtime.errors import UserError, did_you_mean

OURS: dict[str, Callable[[], nn.Module]] = {
    "resnet50w2": lambda: wide_resnet50(2),
    "resnet50w4": lambda: wide_resnet50(4),
    "resnext50_32x8d": resnext50_32x8d,
    "tiny": TinyResNet,
    "vit_s_16": vit_s_16,
}
TORCHVISION = models.list_models(module=models)  # classification alone: the rest lies in modules below this one
# In training these two would give the logits of their auxiliary classifiers as well.
WITHOUT_AUXILIARY = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def build_encoder(name: str, small_stem: bool = False, freeze_patches: bool = False) -> nn.Module:
    """An encoder with random weights: float images (n, 3, h, w) to features (n, num_features).

    Its int attribute `num_features` (timm's convention) is the length of a feature: that which its classifier would
    read, for a ResNet the global average pooling's output. Which h and w fit is the family's affair: any for a
    ResNet, 224 for a ViT.

    Args:
        name: `resnet50w2` and `resnet50w4` (R50w2x and R50w4x of Table 1), `resnext50_32x8d` (its RX50), `tiny` (for
            32-pixel images on a CPU), `resnet18w0.25` (ResNet-18 with a quarter of the channels; tiny, resnet34 and
            resnet50 likewise, with any such factor), `vit_s_16` (MoCo v3's), any classification model of torchvision,
            any model of timm (`timm:NAME`, or NAME alone where torchvision has none of
            this name).
        small_stem: for 32-pixel images: a 3x3 convolution of stride 1 and no max-pooling. ResNets alone have a stem
            to exchange; `tiny` has this one already.
        freeze_patches: for ViTs: the patch projection stays random, positions are sines and cosines (MoCo v3).

    Raises:
        UserError: an unknown name; timm's name without timm; a small stem or frozen patches for another family; no
            classifier to take off (torchvision's SqueezeNets).
    """
    if name in OURS:
        encoder = OURS[name]()
    elif narrow := narrower(name):
        encoder = narrow
    elif name in TORCHVISION:
        encoder = models.get_model(name, weights=None, **WITHOUT_AUXILIARY.get(name, {}))
    else:
        encoder = build_from_timm(name)
    if not hasattr(encoder, "num_features"):
        encoder.num_features = remove_classifier(encoder, name)  # type: ignore[assignment]
    if small_stem and isinstance(encoder, ResNet):
        use_small_stem(encoder)
    elif small_stem and not isinstance(encoder, TinyResNet):
        raise UserError(f"--small-stem: {name} is not a ResNet: --no-small-stem, or --encoder resnet18")
    if freeze_patches:
        freeze(encoder, name)
    fuse_blocks(encoder)
    return encoder


def narrower(name: str) -> nn.Module | None:
    """The encoder `resnet18w0.25` or the like; None for what is no name of this kind, or narrower than 8 channels.

    With 4 channels PyTorch 2.15 corrupts memory in the backward of a convolution, channels last, on a CPU.
    """
    found = re.fullmatch(r"(tiny|resnet18|resnet34|resnet50)w(0\.\d+)", name)
    if not found:
        return None
    family, width = found[1], float(found[2])
    if (32 if family == "tiny" else 64) * width < 8:
        return None
    return TinyResNet(width) if family == "tiny" else resnet_of_width(family, width)


def remove_classifier(encoder: nn.Module, name: str) -> int:
    """Puts nn.Identity in the place of the last linear layer, and of dropout just before it; returns its inputs.

    It changes `encoder`, one of torchvision's, whose last layer this is (`fc`, `classifier.1`, `heads.head`, ...). The
    dropout is the classifier's, not the features'.
    """
    layers = [(path, module) for path, module in encoder.named_modules() if not list(module.children())]
    (path_before, before), (path, classifier) = layers[-2:]
    if not isinstance(classifier, nn.Linear):
        raise UserError(
            f"--encoder {name}: has no linear classifier as its last layer to remove: choose another encoder"
        )
    encoder.set_submodule(path, nn.Identity())
    if isinstance(before, nn.Dropout):
        encoder.set_submodule(path_before, nn.Identity())
    return classifier.in_features


def build_from_timm(name: str) -> nn.Module:
    """timm's model `name` or `timm:name`, without its classifier."""
    timm = require_timm(name) if name.startswith("timm:") else import_timm()
    short = name.removeprefix("timm:")
    if timm is None or not timm.is_model(short):
        raise unknown(name, timm)
    encoder: nn.Module = timm.create_model(short, pretrained=False, num_classes=0)
    # Some families have layers between the pooling and the classifier, and `num_features` counts before them.
    encoder.num_features = getattr(encoder, "head_hidden_size", encoder.num_features)
    return encoder


def import_timm() -> ModuleType | None:
    """timm, which is an extra."""
    try:
        import timm
    except ImportError:
        return None
    return timm


def require_timm(what: str) -> ModuleType:
    """timm. Raises UserError, naming what needs it and the extra, if it is not installed."""
    timm = import_timm()
    if timm is None:
        raise UserError(f"{what} needs timm: pip install 'momentum-contrast[timm]'")
    return timm


def unknown(name: str, timm: ModuleType | None) -> UserError:
    """The error for an unknown name, with the nearest known one."""
    known = [*OURS, *TORCHVISION]
    if timm is not None:
        prefix = "timm:" if name.startswith("timm:") else ""
        known += [prefix + model for model in timm.list_models()]
    hint = (
        did_you_mean(name.lower(), known, cutoff=0.6)
        or ": there are tiny, resnet18, resnet50 and all others of torchvision"
    )
    extra = "" if timm else " (timm's encoders need: pip install 'momentum-contrast[timm]')"
    return UserError(f"unknown encoder '{name}'{hint}{extra}")
