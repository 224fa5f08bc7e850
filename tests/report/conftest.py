import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import save_images, train


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> str:
    return save_images(tmp_path_factory.mktemp("data") / "images.npz", classes=True)


@pytest.fixture(scope="session")
def run(tmp_path_factory, source) -> Path:
    return train(source, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def second(tmp_path_factory, source) -> Path:
    return train(source, tmp_path_factory.mktemp("runs") / "other", "--momentum 0.5")
