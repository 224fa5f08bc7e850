"""Where images come from, in what order, and how they reach the device."""

from moco.data.images import ImageSet, InMemory, OnDisk
from moco.data.loader import Loader, epoch_order, evaluation_plan, training_plan
from moco.data.sources import Source, open_source

__all__ = [
    "ImageSet",
    "InMemory",
    "Loader",
    "OnDisk",
    "Source",
    "epoch_order",
    "evaluation_plan",
    "open_source",
    "training_plan",
]
