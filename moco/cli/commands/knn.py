"""moco knn: the weighted k-nearest-neighbour classifier."""

from dataclasses import replace

import torch

from moco.cli.commands.common import computing
from moco.cli.commands.evaluated import open_evaluated, write_accuracies
from moco.cli.options import Knn
from moco.data import Source
from moco.encoders import build_encoder
from moco.evaluation import Trained, evaluate_knn
from moco.runs.checkpoint import read_checkpoint
from moco.runs.folder import Run
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.ranks import is_main
from moco.training import start_logging
from moco.training.build import build_mechanism


def run(options: Knn) -> None:
    """Evaluates a run by a weighted kNN classifier."""
    if options.head and not Run(options.evaluated.run).exists:
        raise UserError(f"--head: {options.evaluated.run} is no run: weights have no projection head of their own here")
    with computing(options.evaluated.compute) as device:
        start_logging(None, is_main())
        trained, source = open_evaluated(options.evaluated)
        k = options.k if options.k is not None else trained.config.log.knn_k
        temperature = options.temperature
        temperature = temperature if temperature is not None else trained.config.log.knn_temperature
        evaluated = _with_head(trained) if options.head else trained
        accuracies = {"top-1": _knn(evaluated, source, device, k, temperature)}
        if options.random:
            untrained = _with_head(trained, random=True) if options.head else _untrained(trained)
            accuracies["random weights"] = _knn(untrained, source, device, k, temperature)
        about = {"data": trained.config.data.source, "k": k, "temperature": temperature}
        write_accuracies(trained, "knn-head" if options.head else "knn", about, accuracies)


def _knn(trained: Trained, source: Source, device: Device, k: int, temperature: float) -> float:
    encoder, centre = trained.on(device)
    return evaluate_knn(encoder, source, centre, device, k, temperature, workers=trained.config.compute.workers)


def _untrained(trained: Trained) -> Trained:
    torch.manual_seed(trained.config.training.seed)
    options = trained.config.encoder
    return replace(trained, encoder=build_encoder(options.encoder, options.small_stem, options.freeze_patches))


def _with_head(trained: Trained, random: bool = False) -> Trained:
    """Encoder and projection head of a run: images to the vectors that are contrasted."""
    mechanism = build_mechanism(trained.config, 2, 1, Device(torch.device("cpu"), bf16=False, channels_last=False))
    if not random:
        state = read_checkpoint(trained.weights)["mechanism"]
        own = {name.removeprefix("query."): value for name, value in state.items() if name.startswith("query.")}
        mechanism.query.load_state_dict(own)
    return replace(trained, encoder=mechanism.query)
