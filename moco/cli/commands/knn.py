"""moco knn: the weighted k-nearest-neighbour classifier."""

from dataclasses import replace

import torch

from moco.cli.commands.common import computing
from moco.cli.commands.evaluated import open_evaluated, write_accuracies
from moco.cli.options import Knn
from moco.data import Source
from moco.encoders import build_encoder
from moco.evaluation import Trained, evaluate_knn
from moco.runtime.device import Device
from moco.runtime.ranks import is_main
from moco.training import start_logging


def run(options: Knn) -> None:
    """Evaluates a run by a weighted kNN classifier."""
    with computing(options.evaluated.compute) as device:
        start_logging(None, is_main())
        trained, source = open_evaluated(options.evaluated)
        k = options.k if options.k is not None else trained.config.log.knn_k
        temperature = options.temperature
        temperature = temperature if temperature is not None else trained.config.log.knn_temperature
        accuracies = {"top-1": _knn(trained, source, device, k, temperature)}
        if options.random:
            accuracies["random weights"] = _knn(_untrained(trained), source, device, k, temperature)
        write_accuracies(
            trained, "knn", {"data": trained.config.data.source, "k": k, "temperature": temperature}, accuracies
        )


def _knn(trained: Trained, source: Source, device: Device, k: int, temperature: float) -> float:
    encoder, centre = trained.on(device)
    return evaluate_knn(encoder, source, centre, device, k, temperature, workers=trained.config.compute.workers)


def _untrained(trained: Trained) -> Trained:
    torch.manual_seed(trained.config.training.seed)
    options = trained.config.encoder
    return replace(trained, encoder=build_encoder(options.encoder, options.small_stem, options.freeze_patches))
