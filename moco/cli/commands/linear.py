"""moco linear: linear classification on frozen features (section 4.1)."""

from dataclasses import asdict

from moco.cli.commands.common import computing, progress
from moco.cli.commands.evaluated import open_evaluated, write_accuracies
from moco.cli.options import LinearProbe
from moco.evaluation import evaluate_linear
from moco.runtime.ranks import is_main
from moco.training import start_logging


def run(options: LinearProbe) -> None:
    """Evaluates a run by a linear classifier."""
    with computing(options.evaluated.compute) as device:
        start_logging(None, is_main())
        trained, source = open_evaluated(options.evaluated)
        encoder, centre = trained.on(device)
        workers = trained.config.compute.workers
        accuracy = evaluate_linear(encoder, source, centre, device, options.linear, workers, progress("linear"))
        accuracies = {"top-1": accuracy.top1}
        if source.num_classes > 5:
            accuracies["top-5"] = accuracy.top5
        write_accuracies(trained, "linear", {"data": trained.config.data.source, **asdict(options.linear)}, accuracies)
