"""Where images come from, each with one spelling, as KINDS lists them."""

from moco.data.sources.registry import KINDS, Kind, open_source, source_of
from moco.data.sources.source import Source

__all__ = ["KINDS", "Kind", "Source", "open_source", "source_of"]
