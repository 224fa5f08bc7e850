"""What a person looks at: tables and pictures of a run."""

from moco.report.pictures import draw_curves, draw_views
from moco.report.tables import accuracy_table

__all__ = ["accuracy_table", "draw_curves", "draw_views"]
