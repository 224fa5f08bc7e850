"""Published figures, in one place, with their sources. None of them is this project's own."""

from typing import NamedTuple


class Published(NamedTuple):
    value: float
    """Top-1 accuracy in per cent."""
    source: str


LIGHTLY = "lightly's benchmark page"
RELEASED = "the released code's page"
HE = "He et al. 2020"
RELEASED_V3 = "the released code's page (moco-v3)"
SOLO = "solo-learn's page, MoCo V2+"

PUBLISHED: dict[tuple[str, str], Published] = {
    ("cifar10-r18", "knn"): Published(83.8, f"{LIGHTLY}: 200 epochs, batch 128"),
    ("imagenet-r50-v1", "linear"): Published(60.6, f"{HE}, Table 1: 200 epochs"),
    ("imagenet-r50-v2", "linear"): Published(67.5, f"{RELEASED}: 200 epochs, mean of 5 runs"),
    ("imagenet-r50-v3", "linear"): Published(68.9, f"{RELEASED_V3}: 100 epochs"),
    ("imagenet-vits-v3", "linear"): Published(73.2, f"{RELEASED_V3}: 300 epochs"),
}
"""By recipe and protocol ("knn" or "linear")."""
