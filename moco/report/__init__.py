"""Tables, pictures and the HTML page of runs."""

from moco.report.card import model_card
from moco.report.gallery import Gallery, GalleryMaker
from moco.report.page import write_page
from moco.report.pictures import draw_contacts, draw_curves, draw_views
from moco.report.sheets import Cell, draw_rows, image_cell
from moco.report.survey import survey_table
from moco.report.tables import accuracy_table

__all__ = [
    "Cell",
    "Gallery",
    "GalleryMaker",
    "accuracy_table",
    "draw_contacts",
    "draw_curves",
    "draw_rows",
    "draw_views",
    "image_cell",
    "model_card",
    "survey_table",
    "write_page",
]
