"""What is found in a set of images is what was put there."""

import io
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import Encoded, Files, InMemory
from moco.data.survey import histogram, survey


def encoded(form, mode="RGB", width=12, height=8, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


@pytest.fixture
def mixed(tmp_path):
    """Nine files: two alike, one whose suffix lies, three that cannot be read."""
    contents = {
        "a.jpg": encoded("JPEG"),
        "b.jpg": encoded("JPEG", "L", 20, 30, seed=1),
        "c.jpg": encoded("PNG", "RGBA", seed=2),
        "d.png": encoded("PNG", "P", 9, 9, seed=3),
        "e.png": encoded("JPEG"),
        "f.jpg": encoded("JPEG", "CMYK", 500, 400, seed=4),
        "g.jpg": encoded("JPEG", width=200, height=200, seed=5)[:3000],
        "h.jpg": b"no image",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in [*contents, "missing.jpg"]]
    return Encoded(Files(paths), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])), contents


def test_all_of_a_mixed_set(mixed):
    images, contents = mixed
    found = survey(images, 0)
    assert (found.total, found.examined.tolist()) == (9, list(range(9)))
    assert found.per_class == [4, 3, 2]
    assert found.formats == Counter(JPEG=5, PNG=2, **{"?": 1})
    assert found.modes == Counter(RGB=3, L=1, RGBA=1, P=1, CMYK=1)
    assert found.sizes == Counter({(12, 8): 3, (20, 30): 1, (9, 9): 1, (500, 400): 1})
    assert found.num_bytes == sum(map(len, contents.values()))
    assert found.duplicates == 1
    assert list(found.broken) == [6, 7, 8]
    assert all(name in found.broken[k] for k, name in ((6, "g.jpg"), (7, "h.jpg"), (8, "missing.jpg")))
    assert found.readable.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_sample_is_drawn_at_random_without_repetition(mixed):
    images, _ = mixed
    samples = [survey(images, 4, seed).examined.tolist() for seed in (0, 0, 1, 2)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) > 1
    for sample in samples:
        assert sample == sorted(set(sample))
        assert len(sample) == 4
    assert survey(images, 4).per_class == [4, 3, 2]  # labels are known of all
    assert len(survey(images, 100).examined) == 9


def test_the_upright_size_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert survey(Encoded(Files([tmp_path / "a.jpg"])), 0).sizes == {(20, 30): 1}


def test_images_in_memory():
    pixels = torch.arange(3 * 3 * 4 * 5, dtype=torch.uint8).reshape(3, 3, 4, 5)
    found = survey(InMemory(torch.cat((pixels, pixels[:2]))), 0)
    assert (found.formats, found.modes, found.sizes) == ({"pixels": 5}, {"RGB": 5}, {(5, 4): 5})
    assert (found.duplicates, found.num_bytes, found.per_class, found.broken) == (2, 300, None, {})


def test_progress_sees_every_piece():
    seen = []
    images = InMemory(torch.zeros(150, 3, 2, 2, dtype=torch.uint8))
    found = survey(images, 0, progress=lambda pieces: (seen.append(len(p)) or p for p in pieces))
    assert sum(seen) == sum(found.sizes.values()) == 150


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({7: 3}, [(7, 7, 3)]),
        ({7: 1, 9: 2}, [(7, 7, 1), (8, 8, 0), (9, 9, 2)]),
        (
            {95: 1, 100: 1, 129: 4},
            [(95, 99, 1), (100, 104, 1)] + [(k, k + 4, 0) for k in (105, 110, 115, 120)] + [(125, 129, 4)],
        ),
    ],
)
def test_histogram(values, expected):
    assert histogram(Counter(values)) == expected


@pytest.mark.parametrize("high", [1, 11, 99, 100, 640, 4096, 100_000])
def test_a_histogram_is_short_and_counts_all(high):
    values = Counter({value: value % 7 + 1 for value in range(3, high + 3)})
    bins = histogram(values)
    assert len(bins) <= 11
    assert sum(count for *_, count in bins) == sum(values.values())
    assert all(after[0] == before[1] + 1 for before, after in pairwise(bins))
