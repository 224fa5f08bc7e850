"""Run by test_two_ranks.py on each rank, and there in one process: all protocols, whatever the number of ranks."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco.data import InMemory, Source
from moco.evaluation import encode, evaluate_knn, evaluate_linear
from moco.runs.config import Linear
from moco.runtime.device import choose_device
from moco.runtime.ranks import gather_objects, is_main, joined
from moco.views import CentreCrop

K, CLASSES = 7, 4
linear, knn = (importlib.import_module(f"moco.evaluation.{name}") for name in ("linear", "knn"))


class Quarters(nn.Module):
    """The mean of each channel in each quarter."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def source() -> Source:
    """131 training images and 45 test images, of 4 classes that differ a little; neither divides into ranks."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (176,), generator=generator)
    centres = torch.randint(95, 161, (CLASSES, 3, 1, 1), generator=generator)
    images = centres[labels] + torch.randint(-95, 95, (176, 3, 8, 8), generator=generator)
    sets = (InMemory(images[part].to(torch.uint8), labels[part]) for part in (slice(131), slice(131, None)))
    return Source(*sets, None)


def results() -> dict[str, Any]:
    data, centre, encoder = source(), CentreCrop("v2", 8), Quarters()
    device = choose_device("cpu", "fp32", channels_last=False)
    found: dict[str, Any] = {}

    def spy(module: Any, name: str) -> None:
        function = getattr(module, name)

        def spied(*arguments: Any) -> Any:
            found[name] = (arguments, function(*arguments))
            return found[name][1]

        setattr(module, name, spied)

    votes, trained = knn.vote, linear._train
    spy(knn, "vote")
    spy(linear, "_train")
    result: dict[str, Any] = {"knn": evaluate_knn(encoder, data, centre, device, k=K, batch_size=10)}
    (cosines, labels, *_), predicted = found["vote"]
    for name, share in (("cosines", cosines), ("labels", labels), ("predicted", predicted)):
        result[name] = torch.cat(gather_objects(share))
    result["features"], result["places"] = encode(encoder, data.train, centre, device, batch_size=10)
    for cached in (True, False):
        options = Linear(epochs=3, batch_size=32, lr=0.5, cached=cached)
        evaluate_linear(encoder, data, centre, device, options)
        result[f"weight, {cached=}"] = found["_train"][1].weight.detach()
    knn.vote, linear._train = votes, trained
    return result


def main(words: list[str]) -> None:
    (path,) = map(Path, words)
    with joined():
        result = results()
        if is_main():
            torch.save(result, path)
