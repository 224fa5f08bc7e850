"""The kNN classifier against the same written as a loop over queries."""

import importlib
import math
import weakref

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moco.data import Encoded, Files, InMemory, Source
from moco.evaluation import Features, evaluate_knn, knn_predict
from moco.runtime.device import choose_device
from moco.views import CentreCrop

CPU = torch.device("cpu")
DEVICE = choose_device(name="cpu", precision="fp32")
knn = importlib.import_module("moco.evaluation.knn")


def plain(bank: Features, queries: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    predicted = []
    for query in queries.double():
        cosines = [(torch.dot(query, row) / (query.norm() * row.norm())).item() for row in bank.values.double()]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = [0.0] * num_classes
        for i in nearest:
            votes[int(bank.labels[i])] += math.exp(cosines[i] / temperature)
        predicted.append(max(range(num_classes), key=lambda c: votes[c]))
    return torch.tensor(predicted)


def random_features(n: int = 97, m: int = 41, d: int = 8, classes: int = 5, seed: int = 0) -> tuple[Features, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, d, generator=generator) * (1 + torch.arange(n)[:, None])  # lengths do not count
    labels = torch.randint(classes, (n,), generator=generator)
    return Features(values, labels), torch.randn(m, d, generator=generator)


@pytest.mark.parametrize("k", [1, 2, 10, 97, 500])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_is_the_loop_written_out(k, temperature):
    bank, queries = random_features(seed=k)
    predicted = knn_predict(bank, queries, 5, k, temperature, CPU)
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, plain(bank, queries, 5, k, temperature))


@pytest.mark.parametrize("voters", [1, 7, 41])
def test_how_many_vote_at_once_changes_nothing(monkeypatch, voters):
    bank, queries = random_features()
    whole = knn_predict(bank, queries, 5, 20, 0.1, CPU)
    monkeypatch.setattr(knn, "_VOTERS", voters)
    assert torch.equal(knn_predict(bank, queries, 5, 20, 0.1, CPU), whole)


@pytest.mark.parametrize("temperature", [1e-4, 1e-30])
def test_a_small_temperature_leaves_the_nearest_alone_to_vote(temperature):
    bank, queries = random_features()
    nearest = knn_predict(bank, queries, 5, 1, 1.0, CPU)
    assert torch.equal(knn_predict(bank, queries, 5, 50, temperature, CPU), nearest)


def test_near_votes_weigh_more_than_many():
    bank = Features(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([1, 0, 0]))
    query = torch.tensor([[2.0, 0.0]])
    assert knn_predict(bank, query, 2, 3, 0.1, CPU).item() == 1
    assert knn_predict(bank, query, 2, 3, 10.0, CPU).item() == 0  # nearly equal weights: two against one


class Means(nn.Module):
    """The mean of each channel; it is to be called in evaluation, without gradients."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return images.mean(dim=(2, 3))


def coloured(labels: Tensor) -> Tensor:
    """Squares of red, green or blue, by the label."""
    images = torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8)
    images[torch.arange(len(labels)), labels] = 250
    return images


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_of_an_encoder_counts_right_answers_and_restores_its_mode(training):
    labels = torch.arange(30) % 3
    images, test = coloured(labels), labels[:10].clone()
    test[:4] = (test[:4] + 1) % 3  # wrong on purpose
    source = Source(InMemory(images, labels), InMemory(images[:10], test), None)
    encoder = Means().train(training)
    assert evaluate_knn(encoder, source, CentreCrop("v2", 16), DEVICE, k=5, batch_size=7) == 0.6
    assert encoder.training == training


def test_features_too_large_for_half_precision_are_compared_as_others():
    class Large(Means):
        def forward(self, images: Tensor) -> Tensor:
            return 1e6 * super().forward(images)

    labels = torch.arange(30) % 3
    source = Source(InMemory(coloured(labels), labels), None, None)
    assert evaluate_knn(Large(), source, CentreCrop("v2", 16), DEVICE, k=5) == 1.0


def test_an_encoder_that_fails_has_its_mode_back():
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("failed")

    labels = torch.arange(30) % 3
    source, encoder = Source(InMemory(coloured(labels), labels), None, None), Fails().train()
    with pytest.raises(RuntimeError, match="failed"):
        evaluate_knn(encoder, source, CentreCrop("v2", 16), DEVICE)
    assert encoder.training


def test_the_bank_votes_where_there_is_one():
    labels = torch.arange(30) % 3
    images = coloured(labels)
    labelled = InMemory(images[:12], labels[:12])
    source = Source(InMemory(images), InMemory(images[12:], labels[12:]), None, bank=labelled)
    assert evaluate_knn(Means().eval(), source, CentreCrop("v2", 16), DEVICE, k=3) == 1.0


@pytest.mark.parametrize(
    ("k", "temperature", "right"),
    [
        (1, 0.1, 0),  # the nearest has class 0
        (3, 0.1, 1),  # at cosines of 1, 0.98, 0.98, two of class 1 outweigh it
        (3, 0.01, 0),  # unless nearness is everything
        (7, 0.1, 1),  # four more of class 0 have a cosine of 0
        (7, 10.0, 0),  # unless all votes are equal
    ],
)
def test_k_and_the_temperature_reach_the_vote(k, temperature, right):
    directions = torch.tensor([0.0, 0.2, -0.2, 0.5 * math.pi])
    views = CentreCrop("v2", 8)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in views.pretexts[0].normalisation)

    class Shade(nn.Module):
        """A direction by how bright an image is."""

        def forward(self, images: Tensor) -> Tensor:
            angle = directions[((images * std + mean).mean(dim=(1, 2, 3)) * 4).long()]
            return torch.stack((angle.cos(), angle.sin()), dim=1)

    brightness = torch.tensor([0, 1, 2, 3, 3, 3, 3], dtype=torch.uint8) * 64 + 32
    images = brightness[:, None, None, None].expand(-1, 3, 8, 8)
    bank = InMemory(images, torch.tensor([0, 1, 1, 0, 0, 0, 0]))
    source = Source(bank, InMemory(images[:1], torch.tensor([right])), None)
    assert evaluate_knn(Shade(), source, views, DEVICE, k=k, temperature=temperature) == 1.0


@pytest.mark.parametrize(
    "bank",
    [
        [None, None, 0, 1, 1],  # what stands in for the unreadable ones is of class 0
        [1, 1, 0],  # the last of a batch of 5 is filled up with class 0
    ],
)
def test_no_image_votes_twice(tmp_path, bank):
    """All images look the same to the encoder, so class 1 has the most votes."""

    class Same(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), 4)

    paths = [tmp_path / f"{number}.png" for number in range(len(bank))]
    for path, label in zip(paths, bank, strict=True):
        path.write_bytes(b"no image") if label is None else Image.new("RGB", (8, 8)).save(path)
    encoded = Encoded(Files(paths), torch.tensor([label or 0 for label in bank]), max_bad=1)
    # Nor is a test image that cannot be read wrong.
    test = Encoded(encoded.reader, torch.tensor([0 if label is None else 1 for label in bank]), max_bad=1)
    assert evaluate_knn(Same(), Source(encoded, test, None), CentreCrop("v2", 8), DEVICE, batch_size=5) == 1.0


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within it took at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        result = function(*arguments, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()).data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self.held += storage.nbytes()
                self.peak = max(self.peak, self.held)
                weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
        return result

    def _freed(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.held -= size


@pytest.mark.slow
def test_the_bank_is_not_held():
    """80,000 images of 256 features each: 82 MB in float32. What is taken at once is a few blocks of it."""

    class Wide(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.arange(1.0, 257).cos() * (1 + images.mean(dim=(1, 2, 3))[:, None])

    with Peak() as peak:
        torch.ones(1_000_000)
    assert peak.peak == 4_000_000
    assert peak.held == 0
    bank = InMemory(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(80_000, -1, -1, -1), torch.zeros(80_000).long())
    source = Source(bank, InMemory(torch.zeros(64, 3, 2, 2, dtype=torch.uint8), torch.zeros(64).long()), None)
    with Peak() as peak:
        assert evaluate_knn(Wide(), source, CentreCrop("v2", 2), DEVICE, k=200, batch_size=2048) == 1.0
    assert peak.peak < 30e6  # 17 MB where this was written


def test_test_features_are_held_in_half_precision(monkeypatch):
    dtypes = []

    class Spied(knn.Neighbours):
        def __init__(self, queries: Tensor, k: int) -> None:
            dtypes.append(queries.dtype)
            super().__init__(queries, k)

    monkeypatch.setattr(knn, "Neighbours", Spied)
    labels = torch.arange(30) % 3
    evaluate_knn(Means(), Source(InMemory(coloured(labels), labels), None, None), CentreCrop("v2", 16), DEVICE)
    assert dtypes == [torch.float16]
