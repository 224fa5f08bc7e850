"""Decoding on the device: the same batches as by the workers. What nvJPEG does, the CPU's decoder does here."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import Encoded, Loader, evaluation_plan
from moco.data.formats.decode import plain_jpeg_size
from moco.runs.config import Compute
from moco.runtime.errors import UserError
from moco.training.build import device_of
from moco.views import Views


class Bytes:
    """A reader of what lies in memory."""

    remote = False

    def __init__(self, content):
        self.content = content

    def __len__(self):
        return len(self.content)

    def read(self, position):
        return self.content[position]

    def name(self, position):
        return f"image {position}"


def encoded(number, format="JPEG", mode="RGB", **options):
    picture = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(picture).resize((60 + number, 50), Image.Resampling.BICUBIC).convert(mode).save(
        data, format, **options
    )
    return data.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(3, exif=exif)


def batches(content, decoder, workers=0, max_bad=0.5):
    images = Encoded(Bytes(content), max_bad=max_bad)
    loader = Loader(images, Views("v2", 32, 0), torch.device("cpu"), workers, decoder)
    return list(loader.batches(evaluation_plan(len(content), 4)))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_views_as_from_the_workers(workers):
    content = [encoded(0), encoded(1, "PNG"), encoded(2, mode="L"), turned(), encoded(4, mode="CMYK"), encoded(5)]
    for ours, expected in zip(batches(content, "gpu", workers), batches(content, "cpu"), strict=True):
        assert torch.equal(ours.images, expected.images)
        for one, other in zip(ours.views, expected.views, strict=True):
            assert torch.equal(one, other)


def test_a_damaged_jpeg_is_counted(logged):
    content = [encoded(0), encoded(1)[:900], encoded(2), b"<html>"]
    made = batches(content, "gpu")
    assert made[0].images.tolist() == [0, 1, 2, 0]
    assert len(logged.records) == 2
    with pytest.raises(UserError, match="of 4 images cannot be read"):
        batches(content, "gpu", max_bad=0.01)


def test_what_is_a_plain_jpeg():
    assert plain_jpeg_size(encoded(0)) == (50, 60)
    assert plain_jpeg_size(encoded(0, mode="L")) == (50, 60)
    for other in (encoded(0, "PNG"), encoded(0, mode="CMYK"), turned(), b"", b"\xff\xd8\xff"):
        assert plain_jpeg_size(other) is None


def test_without_a_gpu():
    with pytest.raises(UserError, match="--decoder gpu: there is no CUDA GPU"):
        device_of(Compute(device="cpu", decoder="gpu"))
