"""Run by test_evaluate.py on each rank, and there in one process: evaluations that do not divide into ranks."""

import json
from pathlib import Path
from typing import Any

from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.runtime.ranks import gather_objects, is_main, joined
from moco.transfer.detection.evaluation.evaluate import evaluate_detector
from tests.transfer.detection.oracle import Numbered, Oracle


def results() -> list[Any]:
    """Of 23 images, one of them broken, with each metric; of one image; what is wrong with a set of broken ones."""
    device = choose_device("cpu", "fp32", channels_last=False)
    images = Numbered(range(23), broken=[4])
    found = [evaluate_detector(Oracle(), images, device, metric=m, side=30).to_dict() for m in ("voc07", "voc", "coco")]
    found.append(evaluate_detector(Oracle(), Numbered([7]), device, metric="coco", side=30).to_dict())
    try:
        evaluate_detector(Oracle(), Numbered([1], broken=[1]), device, metric="voc", side=30)
    except UserError as error:
        found.append(str(error))
    return found


def main(words: list[str]) -> None:
    with joined():
        every = gather_objects(results())
        if is_main():
            Path(words[0]).write_text(json.dumps(every))
