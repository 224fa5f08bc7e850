"""An encoder and the data that it is used on, as commands name them; and what the protocols measured, written."""

from dataclasses import replace
from typing import Any

from moco.cli.commands.common import print_on_main
from moco.cli.options import Evaluated, Weights
from moco.data import Source, open_source, source_of
from moco.evaluation import Trained, open_trained
from moco.report import accuracy_table
from moco.runs.folder import Run
from moco.runs.published import PUBLISHED
from moco.runtime.errors import UserError
from moco.runtime.ranks import is_main


def open_evaluated(evaluated: Evaluated) -> tuple[Trained, Source]:
    """The encoder and the data that it is evaluated on."""
    trained = open_encoder(evaluated)
    spec = data_of(evaluated, evaluated.data)
    data = replace(trained.config.data, source=spec, download=evaluated.download)
    trained.config = replace(trained.config, data=data)
    source = source_of(trained.config)
    if not source.labelled:
        raise UserError(f"--data {spec}: has no labels to evaluate with (classes are folders, or an array of labels)")
    return trained, source


def open_encoder(weights: Weights) -> Trained:
    """The encoder of a run, or of given weights. Raises UserError."""
    trained = open_trained(weights.run, weights.encoder, weights.image_size)
    trained.config = replace(trained.config, compute=weights.compute)
    return trained


def data_of(weights: Weights, data: str | None, option: str = "--data") -> str:
    """The data set that an option names, or else the run's. Raises UserError where there is neither."""
    if data is None and not (run := Run(weights.run)).exists:
        raise UserError(f"{weights.run}: weights name no data set: give {option}")
    return run.config().data.source if data is None else data


def open_images(spec: str, trained: Trained, download: bool, max_bad: float) -> Source:
    """All images of a data set, none cached, as each is needed once, or a few times. Raises UserError."""
    size = trained.config.views.image_size
    return open_source(spec, size=size, download=download, max_bad=max_bad, cache_mb=0)


def write_accuracies(trained: Trained, protocol: str, options: dict[str, Any], accuracies: dict[str, float]) -> None:
    """Prints the table and writes the JSON of a protocol."""
    published = PUBLISHED.get((trained.config.recipe, protocol))
    rows = [(name, value, published if name == "top-1" else None) for name, value in accuracies.items()]
    where = f"{trained.config.encoder.encoder}, {trained.config.data.source}"
    print_on_main(accuracy_table(f"{protocol}: {where}", rows))
    if not is_main():
        return
    values: dict[str, Any] = {"protocol": protocol, "weights": str(trained.weights), **options}
    values |= {"accuracy": accuracies, "published": published._asdict() if published else None}
    # Beside a file of weights there may be others.
    own_folder = Run(trained.folder).checkpoints == trained.weights.parent
    name = protocol if own_folder else f"{trained.weights.name.replace(':', '-')}.{protocol}"
    print_on_main(f"written to {Run(trained.folder).write_json(name, values)}")
