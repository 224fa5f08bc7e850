"""Where images come from, in what order, and how they reach the device."""

from moco.data.folder import Files
from moco.data.images import Encoded, ImageSet, InMemory, Reader
from moco.data.loader import Batch, Loader
from moco.data.order import Asked, Plan, evaluation_plan, shuffled, training_plan
from moco.data.sources import Source, open_source, source_of

__all__ = [
    "Asked",
    "Batch",
    "Encoded",
    "Files",
    "ImageSet",
    "InMemory",
    "Loader",
    "Plan",
    "Reader",
    "Source",
    "evaluation_plan",
    "open_source",
    "shuffled",
    "source_of",
    "training_plan",
]
