"""Views of a batch of images: crops by one function, photometric operations batched where the encoder runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moco.contrast.kernels import kernels
from moco.views.operations import colour_jitter, crop_and_resize, gaussian_blur, grey_scale, normalise, solarise
from moco.views.parameters import Parameters, draw_parameters, only_crops
from moco.views.recipes import Pretext, get_pretext

_CACHE_PIXELS = 256 * 32 * 32
"""Pixels that PyTorch's operations work on at once on a CPU: few enough to stay in its cache."""


class Views:
    """Views of each image of a batch, as pure functions of (seed, epoch, image index, view).

    Args:
        recipe: one of `PRETEXTS` by name (UserError if there is none), or what each view is made of.
        size: height and width of a view in pixels.
        seed: of the run.
        channels_last: the memory format of the views.
        dtype: of the views: float32, or what the encoder computes in.
    """

    def __init__(
        self,
        recipe: str | tuple[Pretext, ...],
        size: int,
        seed: int,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.pretexts: tuple[Pretext, ...] = get_pretext(recipe) if isinstance(recipe, str) else recipe
        self.size, self.seed, self.dtype = size, seed, dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def count(self) -> int:
        """How many views of an image there are."""
        return len(self.pretexts)

    def __call__(self, images: Tensor | Sequence[Tensor], index: Tensor, epoch: int | Tensor) -> list[Tensor]:
        """Views of whole images of one size.

        Args:
            images: uint8 (n, 3, height, width), or n of (3, height, width).
            index: int64 (n,), their numbers in the data set.
            epoch: of the run, one for all or int64 (n,).

        Returns a tensor (n, 3, size, size) for each view, normalised, on the device of the images.
        """
        if isinstance(images, Tensor) and images.is_cuda and not self._some_only and _photometric_gpu() is not None:
            # Everything happens there, and nothing waits for the CPU.
            index = index.to(images.device, non_blocking=True)
            epoch = epoch.to(images.device, non_blocking=True) if isinstance(epoch, Tensor) else epoch
        parameters = self.parameters(index, epoch, *(torch.full_like(index, side) for side in images[0].shape[1:]))
        return self.photometric(crop_and_resize(images, parameters.box, parameters.flip, self.size), parameters)

    def parameters(self, index: Tensor, epoch: int | Tensor, height: Tensor, width: Tensor) -> Parameters:
        """What the views of each image are made of, all of view 0, then all of view 1; sizes in pixels, int64 (n,)."""
        return draw_parameters(self.pretexts, self.seed, epoch, index, height, width)

    def photometric(self, crops: Tensor, parameters: Parameters) -> list[Tensor]:
        """The views of crops that are resized and flipped already, on the device of the crops.

        Args:
            crops: uint8 (count * n, 3, size, size), all of view 0, then all of view 1.
            parameters: of each.
        """
        made = torch.empty(crops.shape, dtype=self.dtype, device=crops.device, memory_format=self.memory_format)
        on_cpu = kernels("moco.views.photometric_cpu") if crops.device.type == "cpu" else None
        if on_cpu is not None and self.dtype in on_cpu.DTYPES:
            pretext = self.pretexts[0]
            on_cpu.finish(crops, parameters, pretext.grey_first, pretext.normalisation, made)
        else:
            self._finish_in_portions(crops, parameters, made)
        return list(made.chunk(self.count))

    def _finish_in_portions(self, crops: Tensor, parameters: Parameters, out: Tensor) -> None:
        """By PyTorch's operations; on a CPU on few images at once, which stay in its cache."""
        step = len(crops) if crops.device.type != "cpu" else max(1, _CACHE_PIXELS // self.size**2)
        for start in range(0, len(crops), step):
            rows = slice(start, min(start + step, len(crops)))
            self._finish(crops[rows], parameters.take(rows), out[rows])

    @property
    def _some_only(self) -> bool:
        """Whether some views are blurred or solarised: which ones is then known on the CPU."""
        return any(pretext.blur_probability or pretext.solarise_probability for pretext in self.pretexts)

    def _finish(self, crops: Tensor, parameters: Parameters, out: Tensor) -> None:
        """Everything but crop and flip, which come first here as they change no colour and commute with the blur.

        Args:
            crops: uint8 (n, 3, size, size).
            out: where the views go.
        """
        pretext = self.pretexts[0]  # the views do not differ in what is used here
        on_gpu = _photometric_gpu() if crops.is_cuda else None
        if on_gpu is not None and not self._some_only:
            on_gpu.colours(crops, parameters, pretext.grey_first, pretext.normalisation, out)
            return
        if on_gpu is not None:
            floats = torch.empty(crops.shape, device=crops.device)
            on_gpu.colours(crops, parameters, pretext.grey_first, None, floats)
        else:
            floats = _in_floats(crops)
            if pretext.grey_first:
                grey_scale(floats, parameters.grey)
            colour_jitter(floats, parameters.jitter, parameters.order)
            if not pretext.grey_first:
                grey_scale(floats, parameters.grey)
        gaussian_blur(floats, parameters.sigma)
        solarise(floats, parameters.solarise)
        normalise(floats, *pretext.normalisation, out=out)


class CentreCrop(Views):
    """The one view of evaluation: the centre of the image, normalised as in training.

    An image of `size` is taken whole; of another, the central 224/256 (section 4.1).
    """

    def __init__(
        self, recipe: str | Pretext, size: int, channels_last: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        pretext = get_pretext(recipe)[0] if isinstance(recipe, str) else recipe
        super().__init__((pretext,), size, seed=0, channels_last=channels_last, dtype=dtype)

    def parameters(self, index: Tensor, epoch: int | Tensor, height: Tensor, width: Tensor) -> Parameters:
        shorter = torch.minimum(height, width)
        whole = (height == self.size) & (width == self.size)
        side = torch.where(whole, shorter, (shorter * 224 / 256).round().long().clamp(min=1))
        box = torch.stack(((height - side) // 2, (width - side) // 2, side, side), dim=1)
        return only_crops(box)

    @property
    def _some_only(self) -> bool:
        return False

    def _finish(self, crops: Tensor, parameters: Parameters, out: Tensor) -> None:
        normalise(_in_floats(crops), *self.pretexts[0].normalisation, out=out)


def _in_floats(crops: Tensor) -> Tensor:
    """uint8 (n, 3, height, width) as float32 in 0..1, one channel after the other."""
    return crops.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _photometric_gpu() -> Any:
    return kernels("moco.views.photometric_gpu")
