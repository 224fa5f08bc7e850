"""The kNN classifier against the same written as a loop over queries."""

import importlib
import math

import pytest
import torch
from torch import Tensor, nn

from moco.data import InMemory, Source
from moco.evaluation import Features, evaluate_knn, knn_predict
from moco.runtime.device import choose_device
from moco.views import CentreCrop

CPU = torch.device("cpu")
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


@pytest.mark.parametrize(("rows", "part"), [(1, 97), (41, 1), (7, 10), (1000, 96)])
def test_pieces_change_nothing(monkeypatch, rows, part):
    bank, queries = random_features()
    whole = knn_predict(bank, queries, 5, 20, 0.1, CPU)
    monkeypatch.setattr(knn, "_QUERIES", rows)
    monkeypatch.setattr(knn, "_BANK", part)
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
    """The mean of each channel, and whether it was in evaluation."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.mean(dim=(2, 3))


def test_evaluation_of_an_encoder_counts_right_answers_and_restores_its_mode():
    images = torch.zeros(30, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(30) % 3
    images[torch.arange(30), labels] = 250
    test = labels[:10].clone()
    test[:4] = (test[:4] + 1) % 3  # wrong on purpose
    source = Source(InMemory(images, labels), InMemory(images[:10], test), None)
    encoder = Means().train()
    device = choose_device(name="cpu", precision="fp32")
    assert evaluate_knn(encoder, source, CentreCrop("v2", 16), device, k=5, batch_size=7) == pytest.approx(0.6)
    assert encoder.training


def test_the_bank_votes_where_there_is_one():
    images = torch.zeros(30, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(30) % 3
    images[torch.arange(30), labels] = 250
    labelled = InMemory(images[:12], labels[:12])
    source = Source(InMemory(images), InMemory(images[12:], labels[12:]), None, bank=labelled)
    device = choose_device(name="cpu", precision="fp32")
    assert evaluate_knn(Means().eval(), source, CentreCrop("v2", 16), device, k=3) == 1.0
