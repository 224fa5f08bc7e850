"""The optimisers, each held against its definition written out parameter by parameter."""

import copy

import pytest
import torch
from torch import nn

from moco.runs.config import Training
from moco.training.optimizers import LARS, Muon, build_optimizer, orthogonalised

STEPS = 6


def model() -> nn.Module:
    torch.manual_seed(0)
    whole = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 5)
    )
    nn.init.zeros_(whole[4].weight)  # a norm of 0: the ratio is 1
    return whole


def backward(whole: nn.Module, step: int) -> None:
    whole.zero_grad()
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    images = images.to(next(whole.parameters()).dtype)
    whole(images).square().mean().backward() if step else whole(images).sum().backward()


def assert_same_steps(training: Training, literal, dtype: torch.dtype = torch.float32) -> None:
    """`literal(p, g, state, lr, step)` changes one parameter; the learning rate differs from step to step."""
    ours, theirs = model().to(dtype), model().to(dtype)
    optimizer = build_optimizer(training, list(ours.parameters()))
    states = [{} for _ in theirs.parameters()]
    for step in range(STEPS):
        lr = training.lr / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        backward(ours, step)
        optimizer.step()
        backward(theirs, step)
        with torch.no_grad():
            for p, state in zip(theirs.parameters(), states, strict=True):
                literal(p, p.grad.clone(), state, lr, step + 1)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6)
    for mine, start in zip(ours.parameters(), model().to(dtype).parameters(), strict=True):
        assert not torch.equal(mine, start)


def test_sgd():
    def literal(p, g, state, lr, _):
        g = g + 0.01 * p
        state["v"] = g if "v" not in state else 0.8 * state["v"] + g
        p -= lr * state["v"]

    assert_same_steps(Training(lr=0.1, sgd_momentum=0.8, weight_decay=0.01), literal)


def test_lars():
    def literal(p, g, state, lr, _):
        if p.ndim > 1:
            u = g + 0.01 * p
            norm_p, norm_u = p.square().sum().sqrt(), u.square().sum().sqrt()
            ratio = 0.001 * norm_p / norm_u if norm_p > 0 and norm_u > 0 else 1.0
            u = ratio * u
        else:
            u = g  # biases, and BN's scales and shifts
        state["v"] = 0.8 * state.get("v", torch.zeros_like(p)) + u
        p -= lr * state["v"]

    assert_same_steps(Training(optimizer="lars", lr=0.5, sgd_momentum=0.8, weight_decay=0.01), literal)


def test_adamw():
    def literal(p, g, state, lr, t):
        p -= lr * 0.1 * p
        state["m"] = 0.9 * state.get("m", torch.zeros_like(p)) + 0.1 * g
        state["v"] = 0.999 * state.get("v", torch.zeros_like(p)) + 0.001 * g.square()
        p -= lr * (state["m"] / (1 - 0.9**t)) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)

    assert_same_steps(Training(optimizer="adamw", lr=0.01, weight_decay=0.1), literal)


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """As it is published: the whole matrix through every step."""
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-30)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


def test_muon():
    def literal(p, g, state, lr, _):
        g = g if p.ndim > 1 else g + 0.01 * p
        state["v"] = 0.8 * state.get("v", torch.zeros_like(p)) + g
        if p.ndim > 1:
            u = (g + 0.8 * state["v"]).flatten(1)
            p *= 1 - lr * 0.01
            p -= lr * max(1, u.shape[0] / u.shape[1]) ** 0.5 * newton_schulz(u).view_as(p)
        else:
            p -= lr * state["v"]

    # In float64: a gradient of few directions has singular values of rounding alone, which the steps enlarge.
    training = Training(optimizer="muon", lr=0.1, sgd_momentum=0.8, weight_decay=0.01)
    assert_same_steps(training, literal, torch.float64)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_muon_is_pytorch_s_on_matrices(shape):
    """Whose momentum is a mean of gradients, which the orthogonal update does not know from a sum; in bf16."""
    one, two = (nn.Parameter(torch.linspace(-1, 1, shape[0] * shape[1]).reshape(shape)) for _ in range(2))
    ours = Muon([one], lr=0.1, momentum=0.8, weight_decay=0.1)
    theirs = torch.optim.Muon([two], lr=0.1, momentum=0.8, weight_decay=0.1, nesterov=True)
    for step in range(4):
        one.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        two.grad = one.grad.clone()
        before = two.detach().clone()
        ours.step()
        theirs.step()
        assert (one - two).norm() <= 0.03 * (two - before).norm()
        with torch.no_grad():
            one.copy_(two)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (8, 2, 1, 1), (5, 5), (3, 64)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_an_orthogonal_update_has_singular_values_about_1(shape, scale):
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    both = [weight, weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight.mT]
    results = orthogonalised(both)
    assert [each.shape for each in results] == [each.shape for each in both]
    for result in results:
        matrix = result.flatten(1)
        values = torch.linalg.svdvals(matrix) / max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        assert values.min() > 0.6
        assert values.max() < 1.25
    if weight.ndim == 4:
        torch.testing.assert_close(*results)
    assert orthogonalised([torch.zeros(3, 4)])[0].abs().max() == 0


def test_lars_moves_a_layer_by_a_share_of_its_norm_whatever_its_gradient():
    """At lr 1 and no momentum, by the trust coefficient."""
    for scale in (1e-6, 1.0, 1e6):
        layer = nn.Linear(6, 7, bias=False)
        before = layer.weight.detach().clone()
        layer.weight.grad = scale * torch.randn(7, 6)
        LARS([layer.weight], lr=1.0, momentum=0.0).step()
        assert (layer.weight.detach() - before).norm().item() == pytest.approx(0.001 * before.norm().item(), rel=1e-3)


@pytest.mark.parametrize("kind", [LARS, Muon])
def test_what_has_no_gradient_stays_and_a_gradient_of_zero_is_taken(kind):
    layer = nn.Linear(3, 3)
    layer.weight.grad = torch.zeros(3, 3)
    before = copy.deepcopy(layer.state_dict())
    optimizer = kind(layer.parameters(), lr=1.0)
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert list(optimizer.state) == [layer.weight]


@pytest.mark.parametrize("kind", [LARS, Muon])
def test_the_learning_rate_is_taken_from_where_the_weights_lie(kind):
    ours, theirs = model(), model()
    for one, lr in ((ours, 0.3), (theirs, torch.tensor(0.3))):
        optimizer = kind(one.parameters(), 0.3, weight_decay=0.1)
        optimizer.param_groups[0]["lr"] = lr
        backward(one, 1)
        optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw", "muon"])
def test_the_state_dict_is_the_whole_state(name):
    training = Training(optimizer=name, lr=0.1)
    one = model()
    optimizer = build_optimizer(training, list(one.parameters()))
    for step in range(2):
        backward(one, step)
        optimizer.step()
    two = copy.deepcopy(one)
    continued = build_optimizer(training, list(two.parameters()))
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for whole, its in ((one, optimizer), (two, continued)):
        backward(whole, 2)
        its.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "muon"])
def test_gradients_and_states_of_another_memory_format_are_paired_by_place(name):
    training = Training(lr=0.1, optimizer=name, weight_decay=0.01)
    plain, last = model(), model().to(memory_format=torch.channels_last)
    optimizers = [build_optimizer(training, list(each.parameters())) for each in (plain, last)]
    for step in range(3):
        backward(plain, step)
        for one, other in zip(plain.parameters(), last.parameters(), strict=True):
            other.grad = one.grad.clone()  # contiguous, whatever the weights are
        for optimizer in optimizers:
            optimizer.step()
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))  # of the other format
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, other)
