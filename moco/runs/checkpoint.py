"""The checkpoints of a run: written whole or not at all, checked before they are used."""

import logging
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from moco.runs.folder import RunFolder
from moco.runtime.errors import UserError, one_line
from moco.runtime.files import write_whole

log = logging.getLogger("moco")


def save_checkpoint(run: RunFolder[Any], step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes the checkpoint of a finished step whole or not at all, and drops all but the last `keep`.

    Those of later steps are dropped too: the run was continued from before them because they are damaged.
    """
    path = run.checkpoints / f"step-{step:09d}.pt"
    write_whole(path, lambda file: _write_checkpoint(state, file))
    saved = run.saved()
    at = saved.index(path)
    for other in saved[:at] + saved[at + keep :]:
        other.unlink(missing_ok=True)
    for partial in run.checkpoints.glob(".step-*"):  # of processes that were killed as they wrote
        partial.unlink(missing_ok=True)
    return path


def newest_checkpoint(run: RunFolder[Any]) -> Path | None:
    """The newest checkpoint that is whole; None if none was written yet. A damaged one is reported.

    Raises UserError if all are damaged.
    """
    saved = run.saved()
    for path in saved:
        if is_whole(path):
            return path
        log.warning("%s is damaged: using the one before it", path)
    if saved:
        raise UserError(f"{run.checkpoints}: all {len(saved)} checkpoints are damaged")
    return None


def require_checkpoint(run: RunFolder[Any]) -> Path:
    """The newest checkpoint that is whole. Raises UserError if none was written yet, or all are damaged."""
    newest = newest_checkpoint(run)
    if newest is None:
        raise UserError(f"{run.path}: the run has no checkpoint yet")
    return newest


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
        raise UserError(f"{path}: cannot be read as a checkpoint: {one_line(error)}") from error
    if not isinstance(state, dict) or "step" not in state:
        raise UserError(f"{path}: is not a checkpoint of a run")
    return state
