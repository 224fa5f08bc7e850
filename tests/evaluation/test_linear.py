"""The linear protocol: it learns what can be learned, by the paper's schedule, on crops without colour work."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from moco.data import InMemory, Source
from moco.evaluation import evaluate_linear
from moco.evaluation.linear import crops_only
from moco.runs.config import Linear
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.views import CentreCrop, Views, get_pretext

DEVICE = choose_device(name="cpu", precision="fp32")
OPTIONS = Linear(epochs=5, batch_size=16, lr=1.0)


class Means(nn.Module):
    """The mean of each channel: which colour an image has can be read off it by a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        return images.mean(dim=(2, 3))


def coloured_squares(n: int, seed: int) -> InMemory:
    """Squares of one of 6 colours, their shade at random."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]])
    labels = torch.arange(n) % 6
    shade = torch.randint(180, 256, (n, 1), generator=generator)
    images = (colours[labels] * shade)[:, :, None, None].expand(n, 3, 16, 16)
    return InMemory(images.to(torch.uint8).contiguous(), labels)


@pytest.fixture
def source():
    return Source(coloured_squares(120, 0), coloured_squares(30, 1), None)


@pytest.mark.parametrize("cached", [True, False])
def test_separable_features_are_learned(source, cached):
    encoder = Means().train()
    accuracy = evaluate_linear(encoder, source, CentreCrop("v2", 16), DEVICE, replace(OPTIONS, cached=cached))
    assert accuracy.top1 == 1.0
    assert accuracy.top5 == 1.0
    assert encoder.training


@pytest.mark.parametrize("cached", [True, False])
def test_the_bank_teaches_where_there_is_one(source, cached):
    unlabelled = InMemory(torch.zeros(40, 3, 16, 16, dtype=torch.uint8))
    source = Source(unlabelled, source.test, None, bank=source.train)
    options = replace(OPTIONS, cached=cached, batch_size=60, epochs=20)
    assert evaluate_linear(Means(), source, CentreCrop("v2", 16), DEVICE, options).top1 == 1.0
    with pytest.raises(UserError, match="only 120 training images"):
        evaluate_linear(Means(), source, CentreCrop("v2", 16), DEVICE, replace(options, batch_size=121))


def test_labels_that_say_nothing_are_not_learned(source):
    source.test.labels = torch.randint(6, (30,), generator=torch.Generator().manual_seed(0))
    accuracy = evaluate_linear(Means(), source, CentreCrop("v2", 16), DEVICE, replace(OPTIONS, cached=True))
    assert accuracy.top1 < 0.5
    assert accuracy.top1 <= accuracy.top5 <= 1.0


def test_the_encoder_sees_each_image_once_if_features_are_cached(source):
    encoder = Means()
    evaluate_linear(encoder, source, CentreCrop("v2", 16), DEVICE, replace(OPTIONS, cached=True))
    assert len(encoder.inputs) == 2  # one batch of test images, one of training images


def test_two_runs_give_the_same(source):
    options = replace(OPTIONS, epochs=1, lr=0.01)
    centre = CentreCrop("v2", 16)
    assert evaluate_linear(Means(), source, centre, DEVICE, options) == evaluate_linear(
        Means(), source, centre, DEVICE, options
    )


@pytest.mark.parametrize(("epochs", "falls"), [(10, (6, 8)), (5, (3, 4)), (100, (60, 80))])
def test_the_rate_falls_to_a_tenth_at_three_and_four_fifths(source, monkeypatch, epochs, falls):
    rates = []
    step = torch.optim.SGD.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    options = Linear(epochs=epochs, batch_size=60, lr=30.0, cached=True)
    evaluate_linear(Means(), source, CentreCrop("v2", 16), DEVICE, options)
    expected = [30.0 * 0.1 ** sum(epoch >= fall for fall in falls) for epoch in range(epochs) for _ in range(2)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", ["v1", "v2", "cifar"])
def test_crops_are_without_colour_work(name):
    pretext = crops_only(get_pretext(name)[0])
    assert pretext.area == (0.08, 1.0)
    assert pretext.normalisation == get_pretext(name)[0].normalisation
    image = torch.tensor([200, 30, 90], dtype=torch.uint8)[None, :, None, None].expand(32, 3, 16, 16)
    (view,) = Views((pretext,), 16, 0)(image, torch.arange(32), 0)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in pretext.normalisation)
    assert torch.allclose(view * std + mean, image / 255, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "--epochs 0: at least 1"),
        ({"batch_size": 0}, "--batch-size 0: at least 1"),
        ({"batch_size": 121}, "--batch-size 121: the data set has only 120 training images: give no more"),
        ({"lr": 0.0}, "--lr 0.0: above 0"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0: at least 0"),
    ],
)
def test_numbers_out_of_range(source, changes, said):
    with pytest.raises(UserError) as caught:
        evaluate_linear(Means(), source, CentreCrop("v2", 16), DEVICE, replace(OPTIONS, **changes))
    assert str(caught.value) == said
