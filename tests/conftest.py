from collections.abc import Callable
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
