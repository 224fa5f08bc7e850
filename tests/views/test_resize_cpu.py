"""The kernel for crops of small images, against torchvision's bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

pytest.importorskip("numba")
from moco.views import operations
from moco.views.resize_cpu import crop_and_resize_small


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.integers(2, 90),  # of 1, an assertion of PyTorch's own kernel fails (2.15)
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_the_bytes_are_torchvisions(height, width, size, layout, data):
    images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
    images[0] = 255  # the largest sums
    box, flip = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        box.append((data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w)), h, w))
        flip.append(data.draw(st.booleans()))
    ours = crop_and_resize_small(images.contiguous(memory_format=layout), torch.tensor(box), torch.tensor(flip), size)
    for row, (crop, flipped) in enumerate(zip(box, flip, strict=True)):
        theirs = F.resized_crop(images[row % 3], *crop, [size, size], antialias=True)
        assert torch.equal(ours[row], theirs.flip(2) if flipped else theirs)


def test_it_is_taken_for_small_images_alone(monkeypatch):
    taken = []
    spied = lambda *given: taken.append(given) or crop_and_resize_small(*given)  # noqa: E731
    monkeypatch.setattr("moco.views.resize_cpu.crop_and_resize_small", spied)
    whole, no = torch.tensor([[0, 0, 32, 32]]), torch.tensor([False])
    operations.crop_and_resize(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), whole, no, 16)
    operations.crop_and_resize(torch.zeros(1, 3, 100, 100, dtype=torch.uint8), whole, no, 16)
    assert len(taken) == 1


def test_no_crops():
    images, none = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 4, dtype=torch.int64)
    assert crop_and_resize_small(images, none, torch.zeros(0, dtype=torch.bool), 4).shape == (0, 3, 4, 4)
