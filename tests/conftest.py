import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest


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
def locked_elsewhere() -> Callable[[Path], AbstractContextManager[None]]:
    """`with locked_elsewhere(run):` another process trains the run, and is killed at the end."""
    lock = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"

    @contextmanager
    def locked(run: Path) -> Iterator[None]:
        words = [sys.executable, "-c", lock, str(run / ".lock")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            yield
            other.kill()

    return locked
