"""An encoder with a linear classifier on its features."""

import torch
from torch import Tensor, nn

from moco.contrast.batchnorm import synchronise_batch_norm
from moco.runtime.errors import UserError
from moco.transfer.normalisation import normalisation_of
from moco.views import CentreCrop, Pretext, Views


class Classifier(nn.Module):
    """Float images (n, 3, h, w) to logits (n, classes). BN is trained, over the images of all ranks.

    Raises UserError, where there are several ranks, at an encoder whose BN cannot be synchronised.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        try:
            self.encoder = synchronise_batch_norm(encoder)
        except ValueError as error:
            raise UserError(f"--encoder: {error}: train it by one process") from error
        self.classifier = nn.Linear(encoder.num_features, classes)  # type: ignore[arg-type]
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encoder(images))
        return logits


def training_views(size: int, min_area: float, flip: bool, normalisation: str, seed: int, channels_last: bool) -> Views:
    """A random crop of at least `min_area` of the image, resized to `size` pixels, half of them flipped."""
    pretext = Pretext(
        area=(min_area, 1.0),
        jitter_probability=0.0,
        grey_probability=0.0,
        flip_probability=0.5 if flip else 0.0,
        normalisation=normalisation_of(normalisation),  # type: ignore[arg-type]
    )
    return Views((pretext,), size, seed, channels_last)


def test_views(size: int, normalisation: str, channels_last: bool) -> CentreCrop:
    """The centre of an image, as in section 4.1."""
    pretext = Pretext(normalisation=normalisation_of(normalisation))  # type: ignore[arg-type]
    return CentreCrop(pretext, size, channels_last)


def require_size(encoder: nn.Module, size: int, name: str) -> None:
    """Raises UserError if an encoder cannot take images of this size."""
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # of whatever type: it depends on the encoder
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--image-size {size}: {name} cannot take images of this size: {reason}") from error
    finally:
        encoder.train(training)
