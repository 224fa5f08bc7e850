import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import train


@pytest.fixture(scope="session")
def source(random_npz) -> str:
    return f"npz:{random_npz(120)}"


@pytest.fixture(scope="session")
def run(tmp_path_factory, source) -> Path:
    return train(source, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def second(tmp_path_factory, source) -> Path:
    return train(source, tmp_path_factory.mktemp("runs") / "other", "--key-momentum 0.5")
