"""The classes of every pixel of anyone's images: as masks, and over the images."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from moco.data.formats.decode import read_image
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole
from moco.transfer.images import file_names, make_empty, save_picture
from moco.transfer.segmentation.fcn import FCN
from moco.transfer.segmentation.inference import infer
from moco.transfer.segmentation.pictures import as_mask, draw_over

log = logging.getLogger("moco")


class Predicted(NamedTuple):
    """How many images were predicted, and how many could not be read."""

    images: int
    unreadable: int


def predict(
    model: FCN,
    classes: Sequence[str],
    paths: Sequence[Path],
    out: Path,
    device: Device,
    workers: int | None = 0,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> Predicted:
    """Writes masks/NAME.png (a palette, whose values are the classes), overlays/NAME and classes.txt into a folder.

    Broken images are named in the log and skipped. On one rank.

    Args:
        model: on the device.
        classes: their names.
        paths: of the images; `image_paths` finds those of folders.
        progress: wraps the numbers of the images.

    Raises UserError if `out` is there and not an empty folder, or if no image can be read.
    """
    make_empty(out)
    for folder in ("masks", "overlays"):
        make_empty(out / folder)
    errors: list[str] = []

    def broken(number: int, error: str) -> None:
        log.warning("skipped: %s", error)
        errors.append(error)

    names, done = file_names(paths), 0
    for number, image, labels in infer(
        model, _Reader(paths), progress(list(range(len(paths)))), device, broken, workers
    ):
        name = out / "overlays" / names[number]
        save_picture(as_mask(labels, classes), (out / "masks" / names[number]).with_suffix(".png"))
        save_picture(draw_over(image, labels, classes), name)
        done += 1
    if not done:
        raise UserError(f"none of {len(paths)} images can be read: {errors[0]}")
    write_whole(out / "classes.txt", lambda file: file.write("".join(f"{name}\n" for name in classes).encode()))
    return Predicted(done, len(errors))


class _Reader:
    """An image, and the same once more, as it is drawn on."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.paths[number])
        return image, image
