"""Where images come from, in what order, and how they reach the device."""

from moco.data.dataset import Encoded, ImageSet, InMemory, Reader
from moco.data.loading.loader import Batch, Loader
from moco.data.order import Indices, Plan, evaluation_plan, shuffled, training_plan
from moco.data.sources.folder import Files
from moco.data.sources.registry import open_source, source_of
from moco.data.sources.source import Source

__all__ = [
    "Batch",
    "Encoded",
    "Files",
    "ImageSet",
    "InMemory",
    "Indices",
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
