"""Features come in the order of the set, each once, whatever the batch."""

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from moco.data import Encoded, Files, InMemory
from moco.evaluation import encode, extract
from moco.runtime.device import choose_device
from moco.views import CentreCrop

DEVICE = choose_device(name="cpu", precision="fp32")
VIEWS = CentreCrop("v2", 8)


class First(nn.Module):
    """The first pixel, of three channels."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return images[:, :, 0, 0]


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(numbers) for numbers in VIEWS.pretexts[0].normalisation)
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("batch_size", [1, 4, 9, 20])
def test_features_in_memory(batch_size):
    pixels = torch.arange(27).view(9, 3)
    images = InMemory(pixels[:, :, None, None].expand(-1, -1, 8, 8).to(torch.uint8), torch.arange(9).flip(0))
    features = extract(First().train(), images, VIEWS, DEVICE, batch_size)
    torch.testing.assert_close(features.values, normalised(pixels), rtol=0, atol=1e-5)
    assert features.labels.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert features.values.is_contiguous()


@pytest.mark.parametrize("batch_size", [1, 4, 9, 20])
@pytest.mark.parametrize("bad", [[0], [3, 4], [8], [0, 1, 7, 8]])
def test_unreadable_images_are_left_out(tmp_path, bad, batch_size):
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        path.write_bytes(b"no image") if number in bad else Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    good = [number for number in range(9) if number not in bad]
    images = Encoded(Files(paths), 10 * torch.arange(9), max_bad=1)
    values, places = encode(First(), images, VIEWS, DEVICE, batch_size)
    assert places.tolist() == good
    expected = normalised(torch.tensor([[number, 0, 0] for number in good]))
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    assert extract(First(), images, VIEWS, DEVICE, batch_size).labels.tolist() == [10 * number for number in good]


def test_what_is_kept_of_a_batch_is_what_comes_back():
    images = InMemory(torch.zeros(9, 3, 8, 8, dtype=torch.uint8))
    values, _ = encode(First(), images, VIEWS, DEVICE, 4, keep=lambda features: features[:, :2].half())
    assert (values.shape, values.dtype) == ((9, 2), torch.float16)


def test_progress_goes_around_the_batches():
    images, seen = InMemory(torch.zeros(9, 3, 8, 8, dtype=torch.uint8)), []

    def progress(batches):
        for batch in batches:
            seen.append(len(batch.images))
            yield batch

    encode(First(), images, VIEWS, DEVICE, 4, progress=progress)
    assert seen == [4, 4, 4]
