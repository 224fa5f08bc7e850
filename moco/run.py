"""A run is a folder. Everything that reads a run takes that folder.

config.yaml      what the run is made of
checkpoints/     step-000001234.pt: {"step", "mechanism", "optimizer", ...}, the last few
metrics.jsonl    a line every few steps: loss, look-up accuracy, learning rate; kNN; the same for the same config
timing.jsonl     images/s beside them, which no two runs share
tensorboard/     both, as events
views.png        pairs of views as the encoder sees them
curves.png       the metrics, drawn
report.html      all of it, as a page
knn.json ...     what the protocols measured; findings.json what the doctor found
log.txt          what was said
"""

import fcntl
import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from moco.config import Config, check, differences, from_dict, to_dict
from moco.contrast.ranks import rank, world_size
from moco.errors import UserError
from moco.files import write_whole

log = logging.getLogger("moco")


class Busy(UserError):  # noqa: N818  # not an error of the run
    """Another process trains the run."""


class Run:
    """The folder of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.timing = path / "timing.jsonl"

    @classmethod
    def create(cls, path: Path, config: Config) -> "Run":
        """A new run, made by the main rank while the others wait.

        Raises UserError on all of them if the folder holds another already, or cannot be written.
        """
        _on_main_rank(lambda: cls._make(path, config), UserError(f"{path}: could not be made"))
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For as long as this process trains the run. Raises Busy, on all ranks, if another does."""
        busy = Busy(f"{self.path}: another process is training it: wait for it, or --out another")
        with ExitStack() as held:

            def lock() -> None:
                path = self.path / ".lock"
                try:
                    file = held.enter_context(path.open("ab"))
                except OSError as error:
                    raise UserError(f"{path}: cannot be written: {error.strerror}") from error
                try:
                    # A file of its own, as a lock of this kind goes when its process closes the file, however it opened
                    # it; the workers that a killed process leaves behind do not have it.
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    raise busy from None
                except OSError as error:  # a file system without locks
                    log.warning("%s: cannot be locked: train it by one process alone (%s)", self.path, error.strerror)

            _on_main_rank(lock, busy)
            yield

    @classmethod
    def _make(cls, path: Path, config: Config) -> None:
        run = cls(path)
        if run._config_file.exists():
            raise UserError(f"{path} already holds a run: --resume continues it, --out starts another elsewhere")
        if run.metrics.exists() or run._saved():
            raise UserError(f"{path} holds metrics or checkpoints of a run without its config.yaml: --out another")
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be made: {error.strerror}") from error
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
        write_whole(run._config_file, lambda file: file.write(text.encode()))

    @classmethod
    def open(cls, path: Path) -> "Run":
        """A run that is there. Raises UserError if it is not."""
        run = cls(path)
        if not run._config_file.is_file():
            what = "no such run" if path.exists() else "no such path"
            raise UserError(f"{path}: {what} (a run is a folder with a config.yaml, which moco pretrain writes)")
        return run

    @property
    def _config_file(self) -> Path:
        return self.path / "config.yaml"

    def config(self) -> Config:
        """What the run is made of. Raises UserError if config.yaml is damaged or of another version."""
        try:
            values = yaml.safe_load(self._config_file.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self._config_file}: cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(values, dict):
            raise UserError(f"{self._config_file}: holds no configuration")
        config = from_dict(values, str(self._config_file))
        try:
            check(config)
        except UserError as error:
            raise UserError(f"{self._config_file}: {error}") from error
        return config

    def require(self, config: Config) -> None:
        """Raises UserError, naming each option, if the run was started with another configuration."""
        if changed := differences(self.config(), config):
            raise UserError(
                f"{self.path} holds a run with other options: {', '.join(changed)}: leave them, or --out another"
            )

    def save(self, step: int, state: dict[str, Any], keep: int) -> Path:
        """Writes the checkpoint of a finished step whole or not at all, and drops all but the last `keep`.

        Those of later steps go too: the run was continued from before them because they are damaged.
        """
        path = self.checkpoints / f"step-{step:09d}.pt"
        write_whole(path, lambda file: _write_checkpoint(state, file))
        saved = self._saved()
        at = saved.index(path)
        for other in saved[:at] + saved[at + keep :]:
            other.unlink(missing_ok=True)
        return path

    def _saved(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.checkpoints.glob("step-*.pt"), reverse=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; None if none was written yet. A damaged one is reported.

        Raises UserError if all are damaged.
        """
        saved = self._saved()
        for path in saved:
            if is_whole(path):
                return path
            log.warning("%s is damaged: using the one before it", path)
        if saved:
            raise UserError(f"{self.checkpoints}: all {len(saved)} checkpoints are damaged")
        return None

    def write_json(self, name: str, values: dict[str, Any] | list[Any]) -> Path:
        """Writes what a protocol measured, or the doctor found, into NAME.json."""
        path = self.path / f"{name}.json"
        text = json.dumps(values, indent=2) + "\n"
        write_whole(path, lambda file: file.write(text.encode()))
        return path


def _on_main_rank(act: Callable[[], None], elsewhere: UserError) -> None:
    """Does something on the main rank while the others wait; if it raises UserError there, they raise theirs."""
    failed, error = torch.zeros(()), None
    if rank() == 0:
        try:
            act()
        except UserError as refused:
            failed, error = failed + 1, refused
    if world_size() > 1:
        torch.distributed.all_reduce(failed)
    if failed:
        raise error or elsewhere


Lines = list[dict[str, Any]]


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
            lines.append(values)
        else:
            bad += 1
    if bad:
        log.warning("%s: %d line(s) cannot be read and are left out", path, bad)
    return lines


def _write_checkpoint(state: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save, whose failed write ends in an error of its own at closing: what made it fail is raised."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def is_whole(path: Path) -> bool:
    """Whether a checkpoint holds what was written: its zip's check sums are right, and torch can open it."""
    try:
        with zipfile.ZipFile(path) as archive:
            # An entry marked as a folder passes the sums, but torch gives arbitrary numbers for it.
            if archive.testzip() is not None or any(entry.external_attr for entry in archive.infolist()):
                return False
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damaged bytes may raise anything
        return False
    return True


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU; nothing in it is executed. Raises UserError if it cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or "mechanism" not in state:
        raise UserError(f"{path}: is not a checkpoint of a run")
    return state
