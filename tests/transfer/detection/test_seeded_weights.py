import numpy as np
import torch

from tests.transfer.detection.seeded_weights import decode, encode, randn
from tests.transfer.detection.select_reference import REFERENCE

NAMES = ["a.weight", "a.norm.weight", "a.bias", "b.weight"]
SHAPES = [(40, 27), (40,), (5,), (3, 11, 101)]


def state(generator: torch.Generator, scale: float = 0.3) -> dict[str, np.ndarray]:
    draw = {False: torch.randn, True: torch.rand}
    drawn = [draw["norm" in n](s, generator=generator) for n, s in zip(NAMES, SHAPES, strict=True)]
    found = {name: (scale * values).numpy() for name, values in zip(NAMES, drawn, strict=True)}
    return found | {"a.norm.running_mean": np.arange(40, dtype=np.float32)}


def test_normal_numbers_are_pytorch_s_but_for_rounding():
    for count in (7, 16, 1000, 4097):
        ours = randn(count, torch.Generator().manual_seed(5))
        theirs = torch.randn(count, generator=torch.Generator().manual_seed(5)).numpy()
        assert np.allclose(ours, theirs, rtol=1e-5, atol=3e-6)


def test_weights_are_restored_to_the_last_bit():
    given = state(torch.Generator().manual_seed(7))
    coded = encode(NAMES, given)
    assert coded["seed"] == 7
    assert np.median(coded["steps/b.weight"]) < 8
    found = decode(NAMES, coded)
    assert found.keys() == given.keys()
    assert all(np.array_equal(found[key], value) for key, value in given.items())


def test_weights_of_an_unknown_seed_are_kept_as_they_are():
    given = state(torch.Generator().manual_seed(10**6))
    coded = encode(NAMES, given)
    assert "seed" not in coded
    assert all(np.array_equal(value, given[key]) for key, value in decode(NAMES, coded).items())


def test_the_selection_stays_below_3_megabytes():
    assert sum(path.stat().st_size for path in REFERENCE.iterdir()) < 3_000_000
