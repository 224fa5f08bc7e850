"""moco detect: a detector is trained from an encoder, evaluated, compared, used (section 4.2)."""

from pathlib import Path
from typing import Any

from moco.cli.commands.transfer import Kind, suggest_own
from moco.cli.commands.transfer import main as transfer
from moco.cli.options import Detect
from moco.transfer.detection.config import KINDS
from moco.transfer.detection.recipes import DETECTION


def main(words: list[str]) -> None:
    """The recipe's options are the defaults."""
    transfer(KIND, words)


def _suggest(config: Any, start: str) -> tuple[Any, list[tuple[str, str, str]]]:
    """Of the recipes for one's own images, what follows from them; it is the same for every start."""
    from moco.transfer.detection.suggest import examine, suggest
    from moco.transfer.detection.task import open_sets

    return suggest_own(config, "voc:PATH, coco:PATH, yolo:PATH or shapes", open_sets, examine, suggest)


def _predict(path: Path, options: Any) -> None:
    from moco.cli.commands.common import print_on_main, together
    from moco.runtime.device import choose_device
    from moco.runtime.progress import track
    from moco.transfer.detection.load import load_detector
    from moco.transfer.detection.predict import predict
    from moco.transfer.images import image_paths

    compute = options.config.compute
    with together():
        device = choose_device(compute.device, compute.precision, compute.channels_last)
        out, trained = options.out or path / "predictions", load_detector(path).to(device.device)
        done = predict(
            trained.detector,
            trained.classes,
            image_paths(options.predict),
            out,
            device,
            side=trained.side,
            maximum=trained.maximum,
            threshold=options.threshold,
            workers=compute.workers,
            progress=lambda items: track(items, "images"),
        )
        skipped = f", {done.unreadable} could not be read" if done.unreadable else ""
        print_on_main(
            f"{done.images} images{skipped}; written to {out}: the images with their detections, {done.json.name}"
        )


def _sources() -> dict[str, str]:
    return {name if name == "shapes" else f"{name}:PATH": about for name, about in KINDS.items()}


KIND = Kind("detect", Detect, DETECTION, _suggest, _predict, _sources)
