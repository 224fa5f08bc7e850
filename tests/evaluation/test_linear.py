"""The linear protocol: it learns what can be learned, by the paper's schedule, on crops without colour work."""

import importlib
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from moco.data import Encoded, Files, InMemory, Source, shuffled
from moco.evaluation import evaluate_knn, evaluate_linear
from moco.evaluation.linear import Accuracy, accuracy, crops_only
from moco.runs.config import Linear
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.views import CentreCrop, Views, get_pretext

linear = importlib.import_module("moco.evaluation.linear")
DEVICE = choose_device(name="cpu", precision="fp32")
CENTRE = CentreCrop("v2", 16)
OPTIONS = Linear(epochs=5, batch_size=16, lr=1.0)


class Means(nn.Module):
    """The mean of each channel: which colour an image has can be read off it by a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
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
    accuracy = evaluate_linear(encoder, source, CENTRE, DEVICE, replace(OPTIONS, cached=cached))
    assert accuracy.top1 == 1.0
    assert accuracy.top5 == 1.0
    assert encoder.training


@pytest.mark.parametrize("cached", [True, False])
def test_images_without_a_label_are_left_out(source, cached):
    for images in (source.train, source.test):
        images.labels[::6] = -1  # the colour that would be learned wrong
        images.images[::6] = images.images[1]
    evaluated = Source(source.train, source.test, None)
    options = replace(OPTIONS, cached=cached, batch_size=100, epochs=30)
    assert evaluate_linear(Means(), evaluated, CENTRE, DEVICE, options).top1 == 1.0
    assert evaluate_knn(Means(), evaluated, CENTRE, DEVICE, k=3) == 1.0
    with pytest.raises(UserError, match="only 100 training images"):
        evaluate_linear(Means(), evaluated, CENTRE, DEVICE, replace(options, batch_size=101))


@pytest.mark.parametrize("cached", [True, False])
def test_the_bank_teaches_where_there_is_one(source, cached):
    unlabelled = InMemory(torch.zeros(40, 3, 16, 16, dtype=torch.uint8))
    source = Source(unlabelled, source.test, None, bank=source.train)
    options = replace(OPTIONS, cached=cached, batch_size=60, epochs=20)
    assert evaluate_linear(Means(), source, CENTRE, DEVICE, options).top1 == 1.0
    with pytest.raises(UserError, match="only 120 training images"):
        evaluate_linear(Means(), source, CENTRE, DEVICE, replace(options, batch_size=121))


def test_labels_that_say_nothing_are_not_learned(source):
    source.test.labels = torch.randint(6, (30,), generator=torch.Generator().manual_seed(0))
    accuracy = evaluate_linear(Means(), source, CENTRE, DEVICE, replace(OPTIONS, cached=True))
    assert accuracy.top1 < 0.5
    assert accuracy.top1 <= accuracy.top5 <= 1.0


def test_the_encoder_sees_each_image_once_if_features_are_cached(source):
    encoder = Means()
    evaluate_linear(encoder, source, CENTRE, DEVICE, replace(OPTIONS, cached=True))
    assert len(encoder.inputs) == 2  # one batch of test images, one of training images


def test_two_runs_give_the_same(source):
    options = replace(OPTIONS, epochs=1, lr=0.01)
    first, second = (evaluate_linear(Means(), source, CENTRE, DEVICE, options) for _ in range(2))
    assert first == second


@pytest.fixture
def trained(monkeypatch):
    """The batches of five epochs, and the classifier: filled by `evaluate_linear`."""
    found = {}
    train = linear._train

    def spied(batches, *arguments):
        found["batches"] = [list(batches(epoch)) for epoch in range(5)]
        found["classifier"] = train(batches, *arguments)
        return found["classifier"]

    monkeypatch.setattr(linear, "_train", spied)
    return found


def test_the_classifier_begins_at_0_01(trained):
    """Weights of a standard deviation of 0.01, a bias of 0; a rate of next to nothing leaves them there."""

    class Wide(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.new_ones(len(images), 2000)

    options = Linear(epochs=1, batch_size=60, lr=1e-30, cached=True)
    evaluate_linear(Wide(), Source(coloured_squares(120, 0), coloured_squares(6, 1), None), CENTRE, DEVICE, options)
    weight = trained["classifier"].weight
    assert weight.shape == (6, 2000)
    assert abs(weight.mean()) < 0.0005  # 5 standard errors
    assert 0.0097 < weight.std() < 0.0103
    assert trained["classifier"].bias.abs().max() < 1e-28


def test_seeds_begin_at_different_places(source, trained):
    weights = []
    for seed in (0, 0, 1):
        evaluate_linear(Means(), source, CENTRE, DEVICE, Linear(1, 60, 1e-30, seed=seed, cached=True))
        weights.append(trained["classifier"].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_sgd_written_out(source, trained, cached, weight_decay):
    """In float64: SGD of momentum 0.9, weight decay, a rate that falls to a tenth after 60 % and 80 % of the epochs."""
    options = Linear(epochs=5, batch_size=50, lr=0.5, weight_decay=weight_decay, cached=cached)
    evaluate_linear(Means(), source, CENTRE, DEVICE, replace(options, epochs=1, lr=1e-30))
    parameters = [p.detach().double().requires_grad_() for p in trained["classifier"].parameters()]
    momenta = [torch.zeros_like(p) for p in parameters]
    evaluate_linear(Means(), source, CENTRE, DEVICE, options)
    for epoch, rate in enumerate([0.5, 0.5, 0.5, 0.05, 0.005]):
        for features, labels in trained["batches"][epoch]:
            logits = features.double() @ parameters[0].T + parameters[1]
            loss = -logits.log_softmax(dim=1)[torch.arange(50), labels].mean()
            for p, momentum, gradient in zip(parameters, momenta, torch.autograd.grad(loss, parameters), strict=True):
                momentum.mul_(0.9).add_(gradient + weight_decay * p.detach())
                p.data -= rate * momentum
    for p, expected in zip(trained["classifier"].parameters(), parameters, strict=True):
        torch.testing.assert_close(p.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("epochs", "falls"), [(10, (6, 8)), (5, (3, 4)), (100, (60, 80))])
def test_the_rate_falls_to_a_tenth_at_three_and_four_fifths(source, monkeypatch, epochs, falls):
    rates = []
    step = torch.optim.SGD.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    options = Linear(epochs=epochs, batch_size=60, lr=30.0, cached=True)
    evaluate_linear(Means(), source, CENTRE, DEVICE, options)
    expected = [30.0 * 0.1 ** sum(epoch >= fall for fall in falls) for epoch in range(epochs) for _ in range(2)]
    assert rates == pytest.approx(expected)


def random_images(n: int) -> InMemory:
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return InMemory(images, torch.arange(n))  # each a class of its own


def test_crops_are_for_training_alone():
    """Each epoch sees its own crops of the training images, the test is of centre crops."""
    train, test, encoder = random_images(40), coloured_squares(8, 0), Means()
    options = Linear(epochs=2, batch_size=16, lr=0.1, seed=3)
    evaluate_linear(encoder, Source(train, test, None), CENTRE, DEVICE, options)
    (seen, *crops) = encoder.inputs
    assert torch.equal(seen[:8], CENTRE(test.images, torch.arange(8), torch.zeros(8, dtype=torch.int64))[0])
    views = Views((crops_only(CENTRE.pretexts[0]),), 16, 3)
    assert len(crops) == 4  # two whole batches an epoch; where one ends, the next goes on in the row of all images
    order = torch.cat([shuffled(torch.arange(40), 40, 3, epoch) for epoch in (0, 1)])
    epochs = torch.arange(80) // 40
    for number, crop in enumerate(crops):
        part = slice(16 * number, 16 * number + 16)
        (expected,) = views(train.images[order[part]], order[part], epochs[part])
        torch.testing.assert_close(crop, expected)


def test_cached_features_are_of_centre_crops():
    train, encoder = random_images(40), Means()
    evaluate_linear(encoder, Source(train, train, None), CENTRE, DEVICE, Linear(1, 16, 0.1, cached=True))
    one, other = encoder.inputs
    assert torch.equal(one, other)


@pytest.mark.parametrize("cached", [True, False])
def test_every_feature_has_its_image_s_label(tmp_path, trained, cached):
    """Of images that can be read; and every epoch has whole batches alone, in an order of its own."""
    for number in range(20):
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(tmp_path / f"{number:02}.png")
    for number in (4, 5):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    files = Encoded(Files(sorted(tmp_path.glob("*.png"))), torch.arange(20), max_bad=1)
    evaluate_linear(Means(), Source(files, files, None), CENTRE, DEVICE, Linear(1, 8, 0.1, cached=cached))
    (mean, *_), (std, *_) = CENTRE.pretexts[0].normalisation
    orders = []
    for epoch in range(3):
        batches = trained["batches"][epoch]
        assert [len(labels) for _, labels in batches] == [8, 8]
        features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        torch.testing.assert_close((features[:, 0] * std + mean) * 255, 10.0 * labels, rtol=0, atol=1e-2)
        assert not {4, 5} & set(labels.tolist())
        if cached:
            assert len(labels.unique()) == 16
        orders.append(labels.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_accuracy_counts_the_first_and_the_first_five():
    logits = torch.tensor([9.0, 8, 7, 6, 5, 4, 3]).repeat(7, 1)
    assert accuracy(logits, torch.arange(7)) == Accuracy(1 / 7, 5 / 7)
    assert accuracy(logits, torch.zeros(7, dtype=torch.int64)) == Accuracy(1.0, 1.0)
    assert accuracy(logits, torch.full((7,), 4)) == Accuracy(0.0, 1.0)
    assert accuracy(logits, torch.full((7,), 5)) == Accuracy(0.0, 0.0)
    assert accuracy(logits[:2, :3], torch.tensor([0, 2])) == Accuracy(0.5, 1.0)


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
        ({"lr": 0.0}, "--lr 0.0: above 0, and finite"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0: at least 0"),
    ],
)
def test_numbers_out_of_range(source, changes, said):
    with pytest.raises(UserError) as caught:
        evaluate_linear(Means(), source, CENTRE, DEVICE, replace(OPTIONS, **changes))
    assert str(caught.value) == said
