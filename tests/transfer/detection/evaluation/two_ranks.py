"""Run by test_evaluate.py under torchrun, and there in one process: evaluations that do not divide into ranks."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined():
        every = gather_objects(results())
        if is_main():
            Path(sys.argv[1]).write_text(json.dumps(every))
