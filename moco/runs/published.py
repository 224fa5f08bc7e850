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
