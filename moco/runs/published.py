"""Published figures, in one place, with their sources. None of them is this project's own."""

from typing import Literal, NamedTuple


class Published(NamedTuple):
    value: float
    """Top-1 accuracy in per cent."""
    source: str
    protocol: Literal["linear", "knn"] = "linear"


LIGHTLY = "lightly's benchmark page"
RELEASED = "the released code's page"
HE = "He et al. 2020"
RELEASED_V3 = "the released code's page (moco-v3)"
SOLO = "solo-learn's page, MoCo V2+"

PUBLISHED: dict[tuple[str, str], Published] = {
    ("cifar10-r18", "knn"): Published(83.8, f"{LIGHTLY}: 200 epochs, batch 128", "knn"),
    ("imagenet-r50-v1", "linear"): Published(60.6, f"{HE}, Table 1: 200 epochs"),
    ("imagenet-r50-v2", "linear"): Published(67.5, f"{RELEASED}: 200 epochs, mean of 5 runs"),
    ("imagenet-r50-v3", "linear"): Published(68.9, f"{RELEASED_V3}: 100 epochs"),
    ("imagenet-vits-v3", "linear"): Published(73.2, f"{RELEASED_V3}: 300 epochs"),
}
"""By recipe and protocol ("knn" or "linear")."""

MECHANISMS = {
    "MoCo": Published(60.6, f"{HE}, Fig. 3, K 65,536"),
    "memory bank": Published(58.0, f"{HE}, Fig. 3, K 65,536"),
}
MOMENTA = {
    m: Published(value, f"{HE}, 4.1, K 4096") for m, value in {0.9: 55.2, 0.99: 57.8, 0.999: 59.0, 0.9999: 58.9}.items()
}
ENCODERS = {
    name: Published(value, f"{HE}, Table 1")
    for name, value in {"resnet50": 60.6, "resnext50_32x8d": 63.9, "resnet50w2": 65.4, "resnet50w4": 68.6}.items()
}
SMALL_SCALE = {
    ("CIFAR-10, 200 epochs", "batch 128"): Published(83.8, f"{LIGHTLY}: kNN", "knn"),
    ("CIFAR-10, 200 epochs", "batch 512"): Published(84.7, f"{LIGHTLY}: kNN", "knn"),
    ("CIFAR-10, 800 epochs", "batch 512"): Published(89.9, f"{LIGHTLY}: kNN", "knn"),
    ("CIFAR-10, 1000 epochs", "batch 256"): Published(92.94, f"{SOLO}: linear; m rises to 0.999 there"),
    ("CIFAR-100, 1000 epochs", "batch 256"): Published(69.89, f"{SOLO}: linear; m rises to 0.999 there"),
    ("ImageNet-100, 200 epochs", "batch 256"): Published(56.0, f"{LIGHTLY}: kNN", "knn"),
    ("Imagenette, 800 epochs", "batch 256"): Published(87.4, f"{LIGHTLY}: kNN", "knn"),
    ("ImageNet, 100 epochs", "batch 256"): Published(61.5, f"{LIGHTLY}: linear; kNN 41.8, fine-tuned 74.3"),
}
"""By the experiments of `moco reproduce`: mechanism, momentum, encoder, and series and x."""


class PublishedTransfer(NamedTuple):
    """One line of a transfer table, in per cent; box AP has no prefix, that of masks is "mask AP"."""

    start: str
    """What training started from."""
    numbers: dict[str, float]
    source: str


OPENSELFSUP = "OpenSelfSup's model zoo"
_VOC = f"{HE}, 4.2, mean of 5 runs"


def _voc(start: str, ap50: float, ap: float, ap75: float, source: str = _VOC) -> PublishedTransfer:
    return PublishedTransfer(start, {"AP": ap, "AP50": ap50, "AP75": ap75}, source)


def _coco(start: str, box: float, mask: float) -> PublishedTransfer:
    return PublishedTransfer(start, {"AP": box, "mask AP": mask}, f"{HE}, 4.2")


TRANSFER: dict[str, tuple[PublishedTransfer, ...]] = {
    "voc-r50-c4": (
        _voc("random", 60.2, 33.8, 33.1),
        _voc("supervised IN-1M", 81.3, 53.5, 58.8),
        _voc("end-to-end", 80.4, 54.6, 60.3),
        _voc("memory bank", 80.6, 54.9, 60.6),
        _voc("MoCo IN-1M", 81.5, 55.9, 62.6),
        _voc("MoCo IG-1B", 82.2, 57.2, 63.7),
        _voc("MoCo v2 IN-1M, 200 epochs", 82.4, 57.0, 63.6, RELEASED),
        _voc("MoCo v2 IN-1M, 800 epochs", 82.5, 57.4, 64.0, RELEASED),
        _voc("random", 59.02, 32.83, 31.60, OPENSELFSUP),
        _voc("supervised IN-1M", 81.58, 54.19, 59.80, OPENSELFSUP),
        _voc("MoCo IN-1M", 81.38, 55.95, 62.23, OPENSELFSUP),
        _voc("MoCo v2 IN-1M", 82.24, 56.97, 63.43, OPENSELFSUP),
    ),
    "voc07-r50-c4": (
        _voc("supervised IN-1M", 74.4, 42.4, 42.7, f"{HE}, 4.2"),
        _voc("MoCo IN-1M", 74.9, 46.6, 50.1, f"{HE}, 4.2"),
        _voc("MoCo IG-1B", 75.6, 47.6, 51.7, f"{HE}, 4.2"),
    ),
    "coco-r50-fpn-2x": (
        _coco("random", 36.7, 33.7),
        _coco("supervised IN-1M", 40.6, 36.8),
        _coco("MoCo IN-1M", 40.8, 36.9),
        _coco("MoCo IG-1B", 41.1, 37.4),
    ),
}
"""By detection recipe. The standard deviation of VOC's over five runs is 0.2 (AP50), 0.2 (AP), 0.4 (AP75), by the
released code's page."""
