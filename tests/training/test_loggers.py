"""--logger: the metrics reach Weights & Biases and MLflow, offline, and a continued run is the same run there."""

import json
import os
from pathlib import Path

import pytest

from moco.cli.main import main
from moco.runs.config import Config, Log
from moco.runs.folder import Run, read_lines
from moco.runtime.errors import UserError
from moco.training import loggers
from moco.training.loggers import MLflow, TensorBoard, WandB, check_logger
from tests.report.tiny_runs import train

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_SILENT": "true", "WANDB_MODE": "offline"}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    for name, value in {**QUIET, "MLFLOW_ALLOW_FILE_STORE": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    return Run.create(tmp_path / "run", Config())


@pytest.mark.slow  # it starts wandb's service twice
def test_wandb_offline(run):
    pytest.importorskip("wandb")
    for step in (1, 2):  # stopped after the first, and continued
        logger = WandB(run, Config())
        logger.log(step, {"loss": 1.5 / step, "accuracy": 0.5})
        logger.log(step, {"lr": 0.1})
        logger.close()
    identity = json.loads((run.path / "logger.json").read_text())["wandb"]
    files = list(run.path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(files) == len(list(run.path.glob("wandb/offline-run-*"))) > 0
    written = b"".join(file.read_bytes() for file in files)
    for what in (b"loss", b"accuracy", b"1.5", b"0.75", b"key_momentum"):
        assert what in written


def test_mlflow_in_a_folder_and_continued(run, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    first = MLflow(run, Config())
    first.log(1, {"loss": 1.5})
    first.close()
    second = MLflow(run, Config())
    second.log(2, {"loss": 0.75, "knn": 0.5})
    second.close()
    identity = json.loads((run.path / "logger.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    points = [(point.step, point.value) for point in client.get_metric_history(identity, "loss")]
    assert points == [(1, 1.5), (2, 0.75)]
    found = client.get_run(identity)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["training.lr"] == "0.03"


def test_a_run_logs_what_its_folder_has(run, tmp_path, random_npz):
    mlflow = pytest.importorskip("mlflow")
    trained = Run(train(f"npz:{random_npz(96)}", tmp_path / "trained", "--logger mlflow"))
    identity = json.loads((trained.path / "logger.json").read_text())["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(identity, "loss")
    expected = [(line["step"], line["loss"]) for line in read_lines(trained.metrics) if "loss" in line]
    assert [(point.step, point.value) for point in history] == expected
    assert list((trained.path / "tensorboard").iterdir())  # as always


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_each_is_an_extra_and_its_absence_one_line(monkeypatch, tmp_path, capsys, name):
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"^--logger {name} needs {name}: pip install 'momentum-contrast\[{name}\]'$"):
        check_logger(Config(log=Log(logger=name)))
    check_logger(Config())
    with pytest.raises(SystemExit):
        main(["pretrain", "shapes-cpu", "--logger", name, "--out", str(tmp_path / "run")])
    assert "moco: --logger" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_store_that_cannot_be_reached_is_one_line(run, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"^--logger mlflow: division by zero \(MLFLOW_TRACKING_URI\)$"):
        MLflow(run, Config())
    assert not (run.path / "logger.json").exists()
    assert Path(os.environ["MLFLOW_TRACKING_URI"].removeprefix("file://")).parent == run.path.parent


def test_tensorboard_drops_what_came_after_the_step_that_is_continued(run, monkeypatch):
    made = {}
    monkeypatch.setattr(loggers, "SummaryWriter", lambda folder, **options: made.update(options, folder=folder))
    TensorBoard(run, 7)
    assert made == {"folder": str(run.path / "tensorboard"), "purge_step": 7}


def test_a_store_that_fails_during_training_is_named_once_and_ends_nothing(run, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow")
    logger = MLflow(run, Config())
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *_: 1 / 0)
    for step in (1, 2):
        logger.log(step, {"loss": 1.0})
    logger.close()
    assert [message.split(": ")[1] for message in caplog.messages] == ["division by zero"]
