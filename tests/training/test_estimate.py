"""The cost of a run: steps and evaluations, each as long as it was measured to take."""

import importlib
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from moco.data import InMemory, Source
from moco.runs.config import Linear
from moco.runs.options import with_options
from moco.training import device_of, estimate
from tests.training.test_fast import CONFIG

TRAIN, TEST = 64, 20


@pytest.mark.parametrize(
    ("options", "linear", "encoded"),
    [
        ({"knn_every": 0}, None, 0),
        ({"knn_every": 0, "start_scale": 0.5}, None, 0),
        ({"knn_every": 2, "epochs": 5}, None, 3 * (TRAIN + TEST)),  # at the start, after 2 and 4 epochs
        ({"knn_every": 5, "iterations": 10}, None, 3 * (TRAIN + TEST)),
        ({"knn_every": 0}, Linear(epochs=7, cached=True), TRAIN + TEST),
        ({"knn_every": 0}, Linear(epochs=7), 7 * TRAIN + TEST),
    ],
)
def test_each_step_and_each_encoded_image_counts(monkeypatch, options, linear, encoded):
    """A clock that goes on by a second whenever it is read: a step takes 1 s, the features of all test images 1 s."""
    seconds = count()
    module = importlib.import_module("moco.training.estimate")  # the room hands on the function of that name
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    config = with_options(CONFIG, workers=0, **options)
    sets = (InMemory(torch.zeros(n, 3, 16, 16, dtype=torch.uint8), torch.arange(n) % 2) for n in (TRAIN, TEST))
    found = estimate(config, Source(*sets, None), device_of(config.compute), linear)
    assert found.steps == (options.get("iterations") or config.training.epochs * TRAIN // 16)
    assert found.seconds == pytest.approx(found.steps + encoded / TEST)
