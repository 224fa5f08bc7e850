import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moco.contrast import GroupBatchNorm, SyncBatchNorm, group_batch_norm, synchronise_batch_norm
from moco.contrast.batchnorm import permutation
from tests.contrast.literal import shuffled


@pytest.mark.parametrize("shape", [(12, 6), (12, 6, 5), (12, 6, 5, 4)])
def test_group_bn_is_bn_on_each_group(shape):
    plain = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](6, eps=0.1)
    nn.init.normal_(plain.weight)
    grouped = group_batch_norm(copy.deepcopy(plain), 4)
    x = torch.randn(shape, requires_grad=True)
    expected = torch.cat([copy.deepcopy(plain)(part) for part in x.split(4)])
    assert torch.allclose(grouped(x), expected, atol=1e-6)
    mine = torch.autograd.grad(grouped(x).square().sum(), x)[0]
    assert torch.allclose(mine, torch.autograd.grad(expected.square().sum(), x)[0], atol=1e-4)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_group_bn_moves_its_statistics_by_the_mean_over_groups(momentum):
    plain = nn.BatchNorm2d(3, momentum=momentum)
    grouped = group_batch_norm(copy.deepcopy(plain), 4)
    x = torch.randn(8, 3, 5, 5) * 2 + 1
    grouped(x)
    each = []
    for part in x.split(4):
        alone = copy.deepcopy(plain)
        alone(part)
        each.append(alone)
    assert torch.allclose(grouped.running_mean, (each[0].running_mean + each[1].running_mean) / 2, atol=1e-6)
    assert torch.allclose(grouped.running_var, (each[0].running_var + each[1].running_var) / 2, atol=1e-6)
    assert int(grouped.num_batches_tracked) == 1
    grouped.eval()
    plain.load_state_dict(grouped.state_dict())
    assert torch.equal(grouped(x), plain.eval()(x))


def test_group_bn_without_running_statistics():
    plain = nn.BatchNorm2d(3, track_running_stats=False)
    x = torch.randn(8, 3, 2, 2)
    expected = torch.cat([plain(part) for part in x.split(4)])
    torch.testing.assert_close(group_batch_norm(copy.deepcopy(plain), 4)(x), expected)


def test_group_bn_of_half_precision_has_statistics_of_full_precision():
    grouped = group_batch_norm(nn.BatchNorm1d(3, momentum=1.0), 4)
    x = (torch.randn(8, 3) + 10).bfloat16()
    assert grouped(x).dtype == torch.bfloat16
    torch.testing.assert_close(grouped.running_mean, x.float().mean(dim=0), rtol=0, atol=1e-4)


def test_group_bn_refuses_what_does_not_divide():
    grouped = group_batch_norm(nn.BatchNorm2d(3), 4)
    with pytest.raises(ValueError, match="batch of 10 is not a multiple of the BN group of 4"):
        grouped(torch.randn(10, 3, 2, 2))
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        group_batch_norm(nn.Sequential(nn.SyncBatchNorm(3)), 4)


def test_conversion_keeps_parameters_and_names():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))
    names, weight = list(module.state_dict()), module[1][0].weight
    group_batch_norm(module, 8)
    assert isinstance(module[1][0], GroupBatchNorm)
    assert list(module.state_dict()) == names
    assert module[1][0].weight is weight


@pytest.mark.parametrize("convert", [lambda module: group_batch_norm(module, 4), synchronise_batch_norm])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("training", [True, False])
def test_conversion_keeps_all_of_a_layer(convert, kind, training):
    layer = kind(3, eps=0.5, momentum=0.3).train(training)
    converted = convert(nn.Sequential(layer))[0]
    assert type(converted) is not kind
    assert (converted.eps, converted.momentum, converted.training) == (0.5, 0.3, training)
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        assert getattr(converted, name) is tensor, name


@pytest.mark.parametrize("counter", [0, 1, 97, 2**31 + 5])
def test_permutation_is_its_definition(counter):
    assert permutation(100, torch.tensor(counter)).tolist() == shuffled(100, counter)


@given(st.integers(1, 300), st.integers(0, 2**50))
def test_permutation_is_one_and_pure(n, counter):
    order = permutation(n, torch.tensor(counter))
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, permutation(n, torch.tensor(counter)))


def test_permutations_of_consecutive_steps_are_unrelated():
    """Where an image goes tells nothing of where it came from or went before: mean rank correlation near 0."""
    steps = torch.stack([permutation(256, torch.tensor(256 * step)) for step in range(200)]).double()
    centred = (steps - steps.mean(1, keepdim=True)) / steps.std(1, keepdim=True)
    along = (centred[1:] * centred[:-1]).mean(1)
    from_identity = (centred * (torch.arange(256) - 127.5) / torch.arange(256).double().std()).mean(1)
    for correlations in (along, from_identity):
        assert correlations.mean().abs() < 4 / (256 * 200) ** 0.5
        assert correlations.abs().max() < 0.35


def test_queries_and_keys_fall_into_other_groups():
    """Of a group of 32 in 256 about an eighth stays together, as chance has it."""
    together = []
    for step in range(50):
        group = torch.empty(256, dtype=torch.int64)
        group[permutation(256, torch.tensor(256 * step))] = torch.arange(256) // 32
        together.append((group == torch.arange(256) // 32).double().mean())
    assert torch.stack(together).mean().item() == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dimensions", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_compiled_grouped_bn_is_the_same(momentum, dimensions):
    torch.manual_seed(0)
    layer = (nn.BatchNorm1d if dimensions == 2 else nn.BatchNorm2d)(3, eps=0.1, momentum=momentum)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    eager = group_batch_norm(copy.deepcopy(layer), 4)
    compiled = group_batch_norm(copy.deepcopy(layer), 4)
    # Traced and differentiated as on a GPU, without its code; what cannot be traced is not run eagerly in its place.
    compiled.compile(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x = (torch.randn(12, 3, 5, 5)[..., 0, 0] if dimensions == 2 else torch.randn(12, 3, 5, 5)) * 3 + 1
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, output = eager(one), compiled(other)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
        weight = torch.randn_like(expected)
        (expected * weight).sum().backward()
        (output * weight).sum().backward()
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compiled.weight.grad, eager.weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compiled.running_mean, eager.running_mean)
    torch.testing.assert_close(compiled.running_var, eager.running_var)
    assert compiled.num_batches_tracked == eager.num_batches_tracked


def test_on_one_rank_synchronised_bn_is_bn():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.BatchNorm2d(4))
    ours = synchronise_batch_norm(copy.deepcopy(plain))
    assert isinstance(ours[1], SyncBatchNorm)
    images = torch.randn(6, 3, 5, 5)
    for mode in (True, True, False):
        assert torch.equal(ours.train(mode)(images), plain.train(mode)(images))
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in ours.state_dict().items())


def test_on_one_rank_there_is_nothing_to_synchronise_in_groups():
    grouped = group_batch_norm(nn.Sequential(nn.BatchNorm2d(4)), 2)
    assert isinstance(synchronise_batch_norm(grouped)[0], GroupBatchNorm)
