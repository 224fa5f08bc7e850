"""The pretext task: random views of an image.

views = Views("v2", size=224, seed=0)
view1, view2 = views(images, index, epoch)
"""

from moco.views.parameters import Parameters, draw_parameters
from moco.views.recipes import PRETEXTS, Pretext, get_pretext
from moco.views.views import CentreCrop, Views

__all__ = ["PRETEXTS", "CentreCrop", "Parameters", "Pretext", "Views", "draw_parameters", "get_pretext"]
