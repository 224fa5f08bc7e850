"""The pretext task: two random views of an image.

views = Views("v2", size=224, seed=0)
view1, view2 = views(images, index, epoch)
"""

import torch
from torch import Tensor

from moco.views.operations import colour_jitter, crop_and_resize, gaussian_blur, grey_scale, normalise
from moco.views.parameters import Parameters, draw_parameters
from moco.views.pretext import PRETEXTS, Pretext, get_pretext

__all__ = ["PRETEXTS", "CentreCrop", "Parameters", "Pretext", "Views", "draw_parameters", "get_pretext"]

_CACHE_PIXELS = 256 * 32 * 32
"""How many pixels are worked on at once on a CPU: few enough to stay in its cache, enough to keep its cores busy."""


class Views:
    """Views of each image of a batch, as pure functions of (seed, epoch, image index, view).

    Args:
        recipe: one of `PRETEXTS` by name (UserError if there is none), or one of your own.
        size: height and width of a view in pixels.
        seed: of the run.
        count: how many views of an image there are.
        channels_last: the memory format of the views.
    """

    def __init__(
        self, recipe: str | Pretext, size: int, seed: int, count: int = 2, channels_last: bool = False
    ) -> None:
        self.pretext = get_pretext(recipe) if isinstance(recipe, str) else recipe
        self.size, self.seed, self.count = size, seed, count
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor, index: Tensor, epoch: int | Tensor) -> list[Tensor]:
        """Views of whole images of one size.

        Args:
            images: uint8 (n, 3, height, width).
            index: int64 (n,), their numbers in the data set, best left on the CPU.
            epoch: of the run, one for all or int64 (n,).

        Returns `count` float32 tensors (n, 3, size, size), normalised, on the device of the images.
        """
        sides = [torch.full_like(index, side) for side in images.shape[2:]]
        return [self._view(images, self.parameters(index, epoch, view, *sides)) for view in range(self.count)]

    def parameters(self, index: Tensor, epoch: int | Tensor, view: int, height: Tensor, width: Tensor) -> Parameters:
        """What `view` (0 .. count-1) of each image is made of; sizes in pixels, int64 (n,)."""
        return draw_parameters(self.pretext, self.seed, epoch, index, view, height, width)

    def _view(self, images: Tensor, parameters: Parameters) -> Tensor:
        rows = len(images)
        if images.device.type == "cpu":
            rows = max(1, _CACHE_PIXELS // max(images[0, 0].numel(), self.size**2))
        parts = []
        for start in range(0, len(images), rows):
            part = slice(start, start + rows)
            own = parameters.chunk(part)
            parts.append(self.photometric(crop_and_resize(images[part], own.box, own.flip, self.size), own))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def photometric(self, crops: Tensor, parameters: Parameters) -> Tensor:
        """Everything but the crop and the flip, which come first here as they change no colour and commute with blur.

        Args:
            crops: float32 (n, 3, size, size), values in 0..1; overwritten.
        """
        pretext, jitter, order = self.pretext, parameters.jitter, parameters.order
        if pretext.grey_first:
            grey_scale(crops, parameters.grey)
        if pretext.jitter_probability > 0:
            colour_jitter(crops, jitter, order)
        if not pretext.grey_first:
            grey_scale(crops, parameters.grey)
        gaussian_blur(crops, parameters.sigma)
        return normalise(crops, *pretext.normalisation).contiguous(memory_format=self.memory_format)


class CentreCrop(Views):
    """The one view of evaluation: the centre of the image, normalised as in training.

    An image of `size` is taken whole; of another, the central 224 of 256 parts (section 4.1).
    """

    def __init__(self, recipe: str | Pretext, size: int, channels_last: bool = False) -> None:
        super().__init__(recipe, size, seed=0, count=1, channels_last=channels_last)

    def parameters(self, index: Tensor, epoch: int | Tensor, view: int, height: Tensor, width: Tensor) -> Parameters:
        n, shorter = len(index), torch.minimum(height, width)
        whole = (height == self.size) & (width == self.size)
        side = torch.where(whole, shorter, (shorter * 224 / 256).round().long().clamp(min=1))
        box = torch.stack(((height - side) // 2, (width - side) // 2, side, side), dim=1)
        no = torch.zeros(n, dtype=torch.bool)
        identity = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(n, 4)
        return Parameters(
            box, flip=no, jitter=identity, order=torch.arange(4).expand(n, 4), grey=no, sigma=torch.zeros(n)
        )

    def photometric(self, crops: Tensor, parameters: Parameters) -> Tensor:
        return normalise(crops, *self.pretext.normalisation).contiguous(memory_format=self.memory_format)
