import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import train

from moco.report.map import draw_map


@pytest.fixture(scope="module", autouse=True)
def map_of_few_steps() -> Iterator[None]:
    """What a page's map is drawn with; test_map.py has what more steps do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("moco.report.gallery.draw_map", partial(draw_map, steps=20))
        yield


@pytest.fixture(scope="session")
def source(random_npz) -> str:
    return f"npz:{random_npz(120)}"


@pytest.fixture(scope="session")
def run(tmp_path_factory, source) -> Path:
    return train(source, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def second(tmp_path_factory, source) -> Path:
    return train(source, tmp_path_factory.mktemp("runs") / "other", "--key-momentum 0.5")
