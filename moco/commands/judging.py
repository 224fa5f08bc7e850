"""moco knn and moco linear: the features of a run, judged."""

import logging
from dataclasses import asdict, replace
from typing import Any

import torch

from moco.cli import Judge
from moco.commands.common import computing, progress, say
from moco.config import Linear
from moco.contrast.ranks import rank
from moco.data import Source, source_of
from moco.device import Device
from moco.encoders import build_encoder
from moco.errors import UserError
from moco.evaluation import Trained, evaluate_knn, evaluate_linear, open_trained
from moco.recipes import PUBLISHED
from moco.report import accuracy_table
from moco.run import Run
from moco.training import start_logging

log = logging.getLogger("moco")


def _open(judged: Judge) -> tuple[Trained, Source]:
    """What is judged and on which data."""
    trained = open_trained(judged.run, judged.encoder, judged.image_size)
    if judged.image_size is not None and judged.image_size < 1:
        raise UserError(f"--image-size {judged.image_size}: at least 1")
    if judged.run.is_file() and judged.data is None:
        raise UserError(f"{judged.run}: a file of weights names no data set: give --data")
    data = replace(trained.config.data, source=judged.data or trained.config.data.source, download=judged.download)
    trained.config = replace(trained.config, data=data, compute=judged.compute)
    source = source_of(trained.config)
    if not source.labelled:
        raise UserError(f"--data {data.source}: has no labels to judge by (classes are folders, or an array of labels)")
    return trained, source


def _report(trained: Trained, protocol: str, options: dict[str, Any], accuracies: dict[str, float]) -> None:
    """Prints the table and writes the JSON of a protocol."""
    published = PUBLISHED.get((trained.config.recipe, protocol))
    rows = [(name, value, published if name == "top-1" else None) for name, value in accuracies.items()]
    where = f"{trained.config.encoder.encoder}, {trained.config.data.source}"
    say(accuracy_table(f"{protocol}: {where}", rows))
    if rank() != 0:
        return
    values: dict[str, Any] = {"protocol": protocol, "weights": str(trained.weights), **options}
    values |= {"accuracy": accuracies, "published": published._asdict() if published else None}
    # Beside a file of weights there may be others.
    own_folder = trained.weights.parent != trained.folder
    name = protocol if own_folder else f"{trained.weights.name}.{protocol}"
    say(f"written to {Run(trained.folder).write_json(name, values)}")


def knn(judged: Judge, k: int | None, temperature: float | None, random: bool) -> None:
    """Judges a run by its nearest neighbours."""
    with computing(judged.compute) as device:
        start_logging(None, rank() == 0)
        trained, source = _open(judged)
        k = k if k is not None else trained.config.log.knn_k
        temperature = temperature if temperature is not None else trained.config.log.knn_temperature
        if k < 1 or not temperature > 0:
            raise UserError(f"--k {k}: at least 1" if k < 1 else f"--temperature {temperature}: above 0")
        accuracies = {"top-1": _knn(trained, source, device, k, temperature)}
        if random:
            accuracies["random weights"] = _knn(_untrained(trained), source, device, k, temperature)
        _report(trained, "knn", {"data": trained.config.data.source, "k": k, "temperature": temperature}, accuracies)


def _knn(trained: Trained, source: Source, device: Device, k: int, temperature: float) -> float:
    encoder, centre = trained.on(device)
    return evaluate_knn(encoder, source, centre, device, k, temperature, workers=trained.config.compute.workers)


def _untrained(trained: Trained) -> Trained:
    torch.manual_seed(trained.config.training.seed)
    options = trained.config.encoder
    return replace(trained, encoder=build_encoder(options.encoder, options.small_stem, options.freeze_patches))


def linear(judged: Judge, options: Linear) -> None:
    """Judges a run by a linear classifier."""
    with computing(judged.compute) as device:
        start_logging(None, rank() == 0)
        trained, source = _open(judged)
        encoder, centre = trained.on(device)
        workers = trained.config.compute.workers
        accuracy = evaluate_linear(encoder, source, centre, device, options, workers, progress("linear"))
        accuracies = {"top-1": accuracy.top1}
        if source.num_classes > 5:
            accuracies["top-5"] = accuracy.top5
        _report(trained, "linear", {"data": trained.config.data.source, **asdict(options)}, accuracies)
