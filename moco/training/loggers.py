"""Where a run's metrics go beside metrics.jsonl: TensorBoard, and Weights & Biases or MLflow if wanted."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol
from uuid import uuid4

from torch.utils.tensorboard import SummaryWriter

from moco.runs.config import Config
from moco.runs.folder import Run, RunFolder
from moco.runs.options import to_dict
from moco.runtime.errors import UserError, one_line

log = logging.getLogger("moco")
EXTRAS = ("wandb", "mlflow")
"""Values of --logger that need a package, which has the name of the extra and of the module."""


class Logger(Protocol):
    """Takes the metrics of a step, in the order of the steps."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Events in the run's folder. What came after `step`, from where the run is continued, is not shown."""

    def __init__(self, run: RunFolder[Any], step: int) -> None:
        self._events = SummaryWriter(str(run.path / "tensorboard"), purge_step=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._events.close()


class WandB:
    """A run of Weights & Biases; continued, the same one. WANDB_MODE, WANDB_PROJECT and the like are its own."""

    def __init__(self, run: Run, config: Config) -> None:
        import wandb

        identity = _identity(run, "wandb") or _keep(run, "wandb", uuid4().hex[:8])
        try:
            # What a continued run logs again of steps before is dropped there; its numbers are the same.
            self._run = wandb.init(
                id=identity,
                resume="allow",
                name=run.path.resolve().name,
                config=to_dict(config),
                dir=str(run.path),
                settings=wandb.Settings(console="off"),  # the progress bar stays on the terminal
            )
        except Exception as error:  # of the network, the login
            raise UserError(f"--logger wandb: {one_line(error)} (wandb login, or WANDB_MODE=offline)") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow; continued, the same one. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are its own."""

    def __init__(self, run: Run, config: Config) -> None:
        import mlflow

        self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
        try:
            if (identity := _identity(run, "mlflow")) is None:
                identity = _keep(run, "mlflow", self._create(run, config))
            else:
                self._client.update_run(identity, status="RUNNING")
        except Exception as error:  # of the network, the store
            raise UserError(f"--logger mlflow: {one_line(error)} (MLFLOW_TRACKING_URI)") from error
        self._run, self._failed = identity, False

    def _create(self, run: Run, config: Config) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "moco")
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        identity: str = self._client.create_run(number, run_name=run.path.resolve().name).info.run_id
        for group, options in to_dict(config).items():
            for option, value in options.items() if isinstance(options, dict) else [("name", options)]:
                self._client.log_param(identity, f"{group}.{option}", value)
        return identity

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._tried(lambda: self._client.log_batch(self._run, metrics))

    def close(self) -> None:
        self._tried(lambda: self._client.set_terminated(self._run))

    def _tried(self, send: Callable[[], object]) -> None:
        """metrics.jsonl has it all: a server that fails is named in the log, once, and ends no training."""
        try:
            send()
        except Exception as error:  # of the network, the store
            if not self._failed:
                log.warning("--logger mlflow: %s: some metrics are in metrics.jsonl alone", one_line(error))
            self._failed = True


def open_logger(run: Run, config: Config) -> Logger | None:
    """What --logger names; None: TensorBoard alone. Raises UserError if it cannot be opened."""
    check_logger(config)
    if config.log.logger == "tensorboard":
        return None
    return WandB(run, config) if config.log.logger == "wandb" else MLflow(run, config)


def check_logger(config: Config) -> None:
    """Raises UserError, naming the extra, if what --logger names is not installed."""
    name = config.log.logger
    if name in EXTRAS and find_spec(name) is None:
        raise UserError(f"--logger {name} needs {name}: pip install 'momentum-contrast[{name}]'")


def _identity(run: Run, logger: str) -> str | None:
    """The identity of the run with a logger, if it has been logged there before."""
    try:
        values = json.loads((run.path / "logger.json").read_text())
    except (OSError, ValueError):
        return None
    found = values.get(logger) if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def _keep(run: Run, logger: str, identity: str) -> str:
    """Notes it down, so that the run is the same one when it is continued."""
    others = {name: known for name in EXTRAS if (known := _identity(run, name))}
    run.write_json("logger", {**others, logger: identity})
    return identity
