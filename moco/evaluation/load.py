"""A trained encoder in one line, for one's own program."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from moco.data.formats.decode import pixels
from moco.evaluation.trained import open_trained
from moco.runtime.errors import UserError
from moco.views import CentreCrop, Pretext


class Preprocess:
    """An image as the encoder wants it: the central crop of section 4.1, resized, normalised.

    What `moco knn` and the other commands show an encoder. An image of `size` is taken whole, of another the central
    224/256 of its shorter side.

    Attributes:
        size: height and width of what it gives, in pixels.
        mean, std: of red, green and blue, of values in 0..1, by which it normalises.
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.size, self.mean, self.std = size, mean, std
        self._crop = CentreCrop(Pretext(normalisation=(mean, std)), size)  # type: ignore[arg-type]

    def __call__(self, images: Image.Image | Tensor) -> Tensor:
        """One image or several of one size.

        Args:
            images: Pillow's, of any mode; or uint8 (3, h, w) or (n, 3, h, w), RGB, on any device.

        Returns float32 (3, size, size) of one image, (n, 3, size, size) of several.

        Raises:
            UserError: it is something else.
        """
        if isinstance(images, Image.Image):
            images = pixels(images)
        if images.dtype != torch.uint8 or images.ndim not in (3, 4) or images.shape[-3] != 3:
            given = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise UserError(f"an image is uint8 (3, h, w), or several are uint8 (n, 3, h, w), not {given}")
        batch = images if images.ndim == 4 else images[None]
        (views,) = self._crop(batch, torch.arange(len(batch)), 0)
        return views if images.ndim == 4 else views[0]

    def __repr__(self) -> str:
        return f"Preprocess(size={self.size}, mean={self.mean}, std={self.std})"


def load_encoder(
    path_or_name: str | Path, encoder: str | None = None, image_size: int | None = None
) -> tuple[nn.Module, Preprocess]:
    """A trained encoder, ready to use, and what an image must go through before.

        encoder, preprocess = moco.load_encoder("runs/mine")
        with torch.no_grad():
            features = encoder(preprocess(Image.open("cat.jpg"))[None])  # (1, encoder.num_features)

    Args:
        path_or_name: a run's folder, a file that `moco export` wrote, a released checkpoint of MoCo v1, v2 or v3, a
            folder as the Hugging Face hub has it, `hf:OWNER/NAME`, `torchvision:NAME[:WEIGHTS]`, `timm:NAME`, or
            `shapes-cpu` or `cifar10-cpu`, the small encoders that come along (a path of this name comes first).
        encoder: its name, where the weights do not give it (`resnet50`).
        image_size: height and width in pixels that `preprocess` gives, if not those of the training.

    Returns the encoder, in evaluation mode, on the CPU: float32 images (n, 3, h, w) to features (n, num_features); and
    the `Preprocess` with the normalisation of its training.

    Raises:
        UserError: no such run or weights, or they do not fit.
    """
    trained = open_trained(Path(path_or_name), encoder, image_size)
    described = trained.description
    return trained.encoder.eval(), Preprocess(described.image_size, described.mean, described.std)
