"""Philox: the known answers of its authors' Random123 package, and what `uniform` promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moco.views.counter_rng import philox, uniform

ALL = 0xFFFFFFFF
SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
INDICES = st.lists(st.integers(min_value=0, max_value=2**40), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, answer):
    words = tuple(torch.tensor([word]) for word in counter)
    assert philox(words, key[1] << 32 | key[0]).tolist() == [list(answer)]


def test_counter_words_broadcast():
    words = philox((torch.arange(3)[:, None], torch.arange(2), torch.tensor(5), torch.tensor(0)), 7)
    assert words.shape == (3, 2, 4)
    for i in range(3):
        for j in range(2):
            one = philox((torch.tensor(i), torch.tensor(j), torch.tensor(5), torch.tensor(0)), 7)
            assert torch.equal(words[i, j], one)


@given(seed=SEEDS, index=INDICES, draws=st.integers(1, 40), epoch=st.integers(0, ALL), stream=st.integers(0, 65535))
@settings(max_examples=30, deadline=None)
def test_each_index_has_numbers_of_its_own(seed, index, draws, epoch, stream):
    numbers = uniform(seed, torch.tensor(index), draws, epoch=epoch, stream=stream)
    assert numbers.shape == (len(index), draws)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for row, i in zip(numbers, index, strict=True):
        assert torch.equal(row, uniform(seed, torch.tensor([i]), draws, epoch=epoch, stream=stream)[0])


@given(seed=SEEDS, epoch=st.integers(0, ALL - 1), stream=st.integers(0, 65534))
@settings(max_examples=30, deadline=None)
def test_seed_epoch_and_stream_tell_numbers_apart(seed, epoch, stream):
    index = torch.arange(4)
    own = uniform(seed, index, 8, epoch=epoch, stream=stream)
    others = [
        uniform(seed ^ 1, index, 8, epoch=epoch, stream=stream),
        uniform(seed ^ 1 << 32, index, 8, epoch=epoch, stream=stream),
        uniform(seed, index, 8, epoch=epoch + 1, stream=stream),
        uniform(seed, index, 8, epoch=epoch, stream=stream + 1),
        uniform(seed, index + 4, 8, epoch=epoch, stream=stream),
        uniform(seed, index + 2**32, 8, epoch=epoch, stream=stream),
    ]
    for other in others:
        assert (own != other).float().mean() > 0.9


def test_negative_seed_is_read_as_64_bits():
    assert torch.equal(uniform(-1, torch.arange(3), 4), uniform(2**64 - 1, torch.arange(3), 4))


def test_epoch_and_stream_may_differ_within_a_batch():
    index, epoch, stream = torch.tensor([3, 3, 4]), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2])
    together = uniform(5, index, 6, epoch=epoch, stream=stream)
    for i in range(3):
        alone = uniform(5, index[i : i + 1], 6, epoch=int(epoch[i]), stream=int(stream[i]))
        assert torch.equal(together[i], alone[0])


def test_fewer_draws_are_the_first_of_more():
    index = torch.arange(5)
    assert torch.equal(uniform(1, index, 3), uniform(1, index, 30)[:, :3])


def test_uniform_and_uncorrelated():
    numbers = uniform(0, torch.arange(20_000), 8).double()
    rank = torch.arange(1, 20_001) / 20_000
    for column in numbers.unbind(1):
        # Kolmogorov-Smirnov; 1.95 / sqrt(n) is exceeded once in a thousand times.
        assert (column.sort().values - rank).abs().max() < 1.95 / 20_000**0.5 + 1 / 20_000
    assert (torch.corrcoef(numbers.T) - torch.eye(8)).abs().max() < 0.04
    following = torch.corrcoef(torch.stack((numbers[:-1, 0], numbers[1:, 0])))
    assert following[0, 1].abs() < 0.04
