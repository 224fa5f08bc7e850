"""What is foretold beside what then happens: the sets open, and the figures are read from what the commands print."""

import itertools

import numpy as np
import pytest
from PIL import Image

from bench import estimates
from moco.data import open_source


@pytest.fixture
def given(tmp_path):
    """A file of small images and a folder of photographs."""
    generator = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for number in range(4):
        pixels = generator.integers(0, 256, (320, 340, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photographs/{number}.jpg")
    np.savez(tmp_path / "small.npz", images=generator.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    return tmp_path


def test_every_set_opens(given, tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "JPEGS", 6)
    (made := tmp_path / "made").mkdir()
    sets = estimates.sources(made, f"npz:{given / 'small.npz'}", given / "photographs")
    assert len(sets) == 5
    sizes = {name: len(open_source(source).train) for name, source in sets.items()}
    assert sizes["CIFAR-10, 5,000 images"] == 30
    assert sizes["photographs, all 640x480"] == 4
    assert sizes["JPEGs of two sizes"] == sizes["the same in shards"] > 0


def test_the_figures_are_what_the_commands_print(tmp_path, monkeypatch):
    seconds = itertools.chain([12.0, 75.0])
    printed = iter(
        [
            "about 1.5 minutes here for 1,250 steps, 900 images/s, 300 MB of memory\n",
            "step 10/1250  loss 2.0  61 s left\n",
        ]
    )

    def run(words):
        text, taken = next(printed), next(seconds)
        return text, [(15.0, text)], taken

    monkeypatch.setattr(estimates, "_run", run)
    assert estimates.compared("shapes", 60, tmp_path) == {
        "steps": 1250,
        "foretold": 90.0,
        "took": 75.0,
        "suggesting": 12.0,
        "bar": [{"left": 61.0, "took": 60.0}],
    }
