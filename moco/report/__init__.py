"""What a person looks at: tables and pictures of a run."""

from moco.report.pictures import draw_contacts, draw_curves, draw_views
from moco.report.survey import survey_table
from moco.report.tables import accuracy_table

__all__ = ["accuracy_table", "draw_contacts", "draw_curves", "draw_views", "survey_table"]
