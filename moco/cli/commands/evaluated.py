"""moco knn and moco linear: the features of a run, evaluated."""

from dataclasses import replace
from typing import Any

from moco.cli.commands.common import print_on_main
from moco.cli.options import Evaluated
from moco.data import Source, source_of
from moco.evaluation import Trained, open_trained
from moco.report import accuracy_table
from moco.runs.folder import Run
from moco.runs.published import PUBLISHED
from moco.runtime.errors import UserError
from moco.runtime.ranks import is_main


def open_evaluated(evaluated: Evaluated) -> tuple[Trained, Source]:
    """The encoder and the data that it is evaluated on."""
    trained = open_trained(evaluated.run, evaluated.encoder, evaluated.image_size)
    if not Run(evaluated.run).exists and evaluated.data is None:
        raise UserError(f"{evaluated.run}: weights name no data set: give --data")
    data = replace(
        trained.config.data, source=evaluated.data or trained.config.data.source, download=evaluated.download
    )
    trained.config = replace(trained.config, data=data, compute=evaluated.compute)
    source = source_of(trained.config)
    if not source.labelled:
        raise UserError(
            f"--data {data.source}: has no labels to evaluate with (classes are folders, or an array of labels)"
        )
    return trained, source


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
