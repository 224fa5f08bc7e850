"""moco segment: a network for semantic segmentation is trained from an encoder, evaluated, compared, used (A.5)."""

from pathlib import Path
from typing import Any

from moco.cli.commands.transfer import Kind, suggest_own
from moco.cli.commands.transfer import main as transfer
from moco.cli.options import Segment, Transfer
from moco.transfer.segmentation.config import KINDS
from moco.transfer.segmentation.recipes import SEGMENTATION


def main(words: list[str]) -> None:
    """The recipe's options are the defaults."""
    transfer(KIND, words)


def _suggest(config: Any, start: str) -> tuple[Any, list[tuple[str, str, str]]]:
    """Of the recipe for one's own images, what follows from them; it is the same for every start."""
    from moco.transfer.segmentation.suggest import examine, suggest
    from moco.transfer.segmentation.task import open_sets

    return suggest_own(config, "own:PATH, voc:PATH, cityscapes:PATH or shapes", open_sets, examine, suggest)


def _predict(path: Path, options: Transfer) -> None:
    from moco.cli.commands.common import print_on_main, together
    from moco.runtime.device import choose_device
    from moco.runtime.progress import track
    from moco.transfer.images import image_paths
    from moco.transfer.segmentation.load import load_segmenter
    from moco.transfer.segmentation.predict import predict

    compute = options.config.compute
    with together():
        device = choose_device(compute.device, compute.precision, compute.channels_last)
        out, trained = options.out or path / "predictions", load_segmenter(path).to(device.device)
        done = predict(
            trained.network,
            trained.classes,
            image_paths(options.predict),
            out,
            device,
            compute.workers,
            lambda items: track(items, "images"),
        )
        skipped = f", {done.unreadable} could not be read" if done.unreadable else ""
        print_on_main(f"{done.images} images{skipped}; written to {out}: masks/, overlays/ and classes.txt")


def _sources() -> dict[str, str]:
    return {name if name == "shapes" else f"{name}:PATH": about for name, about in KINDS.items()}


KIND = Kind("segment", Segment, SEGMENTATION, _suggest, _predict, _sources)
