"""A bank of several sets, or of a file: each row has its place in all of them together."""

from types import SimpleNamespace

import torch
from torch import nn

from moco.data import InMemory
from moco.evaluation import nearest, search_bank
from moco.evaluation.search import file_blocks, image_blocks
from moco.runtime.device import choose_device
from moco.views import CentreCrop

DEVICE = choose_device(name="cpu", precision="fp32", channels_last=False)


class Means(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_places_of_images_go_on_from_set_to_set():
    pixels = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = {"train": InMemory(pixels[:5]), "test": InMemory(pixels[5:])}
    encoder, views = Means().train(), CentreCrop("v2", 8)
    blocks = list(image_blocks(encoder, sets, views, DEVICE))
    assert torch.cat([places for _, places in blocks]).tolist() == list(range(9))
    bank = Means()(views(pixels, torch.arange(9), 0)[0])
    torch.testing.assert_close(torch.cat([rows for rows, _ in blocks]), bank)
    assert encoder.training
    assert search_bank(bank[6:8], iter(blocks), 9, 1)[1].tolist() == [[6], [7]]


def test_places_of_a_file_go_on_from_block_to_block():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    blocks = file_blocks(SimpleNamespace(blocks=lambda: iter(rows.split(4))))
    cosines, places = search_bank(rows[[9, 2]], blocks, 10, 3)
    expected = nearest(rows, rows[[9, 2]], 3)
    assert places.tolist() == expected[1].tolist()
    torch.testing.assert_close(cosines, expected[0])
