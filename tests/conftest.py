import atexit
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tests.launch import free_port

# Tests run side by side (pytest -n): several threads each, here and in what they start, would wait for each other.
# PyTorch reads these when it is imported, which is after this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without a GPU Triton's kernels are interpreted; Triton reads this when it is imported.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What is imported and collected stays to the end: without it in the way, a search for garbage takes milliseconds.
gc.disable()
atexit.register(gc.unfreeze)  # libraries count what is left when the process ends


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def random_npz(tmp_path_factory) -> Callable[..., Path]:
    """`random_npz(96)`: a new file of 96 random images, the same for the same arguments; classes=0: no labels."""

    def save(number: int, size: int = 16, classes: int = 3, path: Path | None = None) -> Path:
        path = path or tmp_path_factory.mktemp("data") / "images.npz"
        arrays = {"images": np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)}
        np.savez(path, **arrays, **({"labels": np.arange(number) % classes} if classes else {}))
        return path

    return save


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], None]], Path]:
    """`made_once("runs", train)`: a folder that `train(folder)` fills, once for all processes of pytest -n.

    It is shared: tests read it, and copy what they change.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture
def port() -> int:
    """A port of localhost at which nobody listens."""
    return free_port()


@pytest.fixture(scope="session")
def locked_elsewhere() -> Callable[[Path], AbstractContextManager[None]]:
    """`with locked_elsewhere(run):` another process trains the run, and is killed at the end."""
    lock = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"

    @contextmanager
    def locked(run: Path) -> Iterator[None]:
        words = [sys.executable, "-c", lock, str(run / ".lock")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            try:
                assert other.stdout.readline()
                yield
            finally:
                other.kill()

    return locked
