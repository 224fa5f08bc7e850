"""A run is a folder. Everything that reads a run takes that folder.

config.yaml      what the run is made of
checkpoints/     step-000001234.pt: {"step", "mechanism", "optimizer", ...}, the last few
metrics.jsonl    a line every few steps: loss, contrastive accuracy, learning rate; kNN; the same for the same config
timing.jsonl     images/s beside them, which no two runs share
tensorboard/     both, as events
logger.json      which run this is of --logger wandb or mlflow
views.png        pairs of views as the encoder sees them
curves.png       the metrics, drawn
report.html      all of it, as a page
knn.json ...     what the protocols measured; findings.json what the doctor found
log.txt          warnings and news
"""

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Self

import yaml
from filelock import FileLock, Timeout

from moco.runs.config import MAY_CHANGE, Config, check
from moco.runs.options import Options, differences, from_dict, to_dict
from moco.runtime.errors import UserError, one_line
from moco.runtime.files import write_whole

log = logging.getLogger("moco")


class Busy(UserError):  # noqa: N818  # not an error of the run
    """Another process trains the run."""


class RunFolder(Generic[Options]):
    """The folder of a run.

    Attributes:
        defaults: what the run's configuration is where config.yaml is silent; its type is the configuration's.
        command: what writes such a folder.
        may_change: options that may be others when a run is continued.
    """

    defaults: Options
    command: str
    may_change: Collection[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.timing = path / "timing.jsonl"

    @contextmanager
    def locked(self, wait: float = 0) -> Iterator[None]:
        """For as long as this process trains the run. Raises Busy if another still does after `wait` seconds."""
        lock = FileLock(self.path / ".lock", timeout=wait)
        try:
            lock.acquire()
        except Timeout:
            raise Busy(
                f"{self.path}: another process is training it: wait for it, or choose another folder by --out"
            ) from None
        except NotImplementedError as error:  # a file system without locks
            log.warning("%s: cannot be locked: train it by one process alone (%s)", self.path, error)
        except OSError as error:
            raise UserError(f"{self.path / '.lock'}: cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    @classmethod
    def create(cls, path: Path, config: Options) -> Self:
        """A new run. Raises UserError if the folder holds another already, or cannot be written."""
        run = cls(path)
        if run._config_file.exists():
            raise UserError(
                f"{path} already holds a run: --resume continues it, --out starts another in its own folder"
            )
        if run.metrics.exists() or run.saved():
            raise UserError(
                f"{path} holds metrics or checkpoints of a run without its config.yaml: choose another folder by --out"
            )
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be created: {error.strerror}") from error
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
        write_whole(run._config_file, lambda file: file.write(text.encode()))
        return run

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self._config_file.is_file()

    @classmethod
    def open(cls, path: Path) -> Self:
        """A run that is there. Raises UserError if it is not."""
        run = cls(path)
        if not run.exists:
            what = "no such run" if path.exists() else "no such path"
            raise UserError(f"{path}: {what} (a run is a folder with a config.yaml, which {cls.command} writes)")
        return run

    @property
    def _config_file(self) -> Path:
        return self.path / "config.yaml"

    @staticmethod
    def check(config: Options) -> None:
        """Raises UserError, naming the option, for what cannot be."""
        raise NotImplementedError

    def config(self) -> Options:
        """What the run is made of. Raises UserError: damaged, of another command or version."""
        values = read_values(self._config_file)
        if (written_by := f"moco {values.get('task', 'pretrain')}") != self.command:
            raise UserError(f"{self.path}: is a run of {written_by}, where one of {self.command} is needed")
        config = from_dict(values, str(self._config_file), self.defaults)
        try:
            self.check(config)
        except UserError as error:
            raise UserError(f"{self._config_file}: {error}") from error
        return config

    def require(self, config: Options) -> None:
        """Raises UserError, naming each option, if the run was started with another configuration."""
        if changed := differences(self.config(), config, self.may_change):
            raise UserError(
                f"{self.path} holds a run with other options: {', '.join(changed)}: leave them out, or change --out"
            )

    def saved(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.checkpoints.glob("step-*.pt"), reverse=True)

    def write_json(self, name: str, values: dict[str, Any] | list[Any]) -> Path:
        """Writes NAME.json into the folder."""
        path = self.path / f"{name}.json"
        text = json.dumps(values, indent=2) + "\n"
        write_whole(path, lambda file: file.write(text.encode()))
        return path


def read_values(path: Path) -> dict[str, Any]:
    """What a config.yaml holds. Raises UserError if it cannot be read."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no configuration")
    return values


class Run(RunFolder[Config]):
    """The folder of a run of pre-training."""

    defaults = Config()
    command = "moco pretrain"
    may_change = MAY_CHANGE
    check = staticmethod(check)


Lines = list[dict[str, Any]]
RENAMED = {"spread": "feature_std"}
"""Metrics that earlier versions called otherwise."""


def read_lines(path: Path) -> Lines:
    """The whole lines of metrics.jsonl or timing.jsonl; a run that was killed may leave a last one that is not.

    Of a file that is not there, none.
    """
    lines: Lines = []
    bad = 0
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            lines.append({RENAMED.get(str(name), str(name)): value for name, value in values.items()})
        else:
            bad += 1
    if bad:
        log.warning("%s: %d line(s) cannot be read and are left out", path, bad)
    return lines
