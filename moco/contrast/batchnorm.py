"""Batch normalisation: in groups, for shuffling BN (section 3.3), and over all ranks (MoCo v3).

BN statistics reveal which samples were normalised together, and a model that exploits this cheats: it finds the
positive key by its sub-batch. So statistics are taken over groups (the paper's devices), and keys are encoded in other
groups than queries: in the order of `permutation`, which spans all ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco.contrast.collectives import gather_with_gradient, world_size
from moco.contrast.kernels import kernels

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GroupBatchNorm(_BatchNorm):
    """Batch normalisation with statistics over groups of `group_size` consecutive samples, as over so many devices.

    It has the parameters and buffers of the layer that it stands for; in evaluation it is that layer. The running
    statistics move by the mean over the groups, so they are as steady as those of the whole batch. None is one group,
    the whole batch: on a GPU that is faster than PyTorch's layer.
    """

    def __init__(self, like: _BatchNorm, group_size: int | None) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.group_size = group_size
        self.training = like.training
        self._parameters.update(like._parameters)
        self._buffers.update(like._buffers)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (n, channels, ...) will do."""

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """(n, channels, ...) to the same. In training n must be a multiple of the group size, else ValueError.

        Args:
            residual: of the same shape, is added to the result.
            relu: ReLU follows, after the residual. On a GPU, and in groups on a CPU, both are part of our own kernels.
        """
        size = self.group_size or len(input)
        if (fused := self._by_kernels(input, size, residual, relu)) is not None:
            return fused
        output = self._normalised(input, size)
        if residual is not None:
            output += residual
        return F.relu(output, inplace=True) if relu else output

    def _normalised(self, input: Tensor, size: int) -> Tensor:
        if not self.training or size == len(input):
            return super().forward(input)
        if len(input) % size:
            raise ValueError(f"a batch of {len(input)} is not a multiple of the BN group of {size}")
        if torch.compiler.is_compiling():
            return self._by_formula(input, size)
        groups = input.split(size)
        # With a momentum of 1 each group's own statistics land in these rows.
        dtype = torch.promote_types(input.dtype, torch.float32)
        means, variances = input.new_zeros(2, len(groups), self.num_features, dtype=dtype)
        # PyTorch's fast kernel on each group and one copy costs less than one kernel over a view by groups.
        output = torch.cat(
            [
                F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
                for group, mean, variance in zip(groups, means, variances, strict=True)
            ]
        )
        if self.track_running_stats:
            track(self, means.mean(dim=0), variances.mean(dim=0))
        return output

    def _by_kernels(self, input: Tensor, size: int, residual: Tensor | None, relu: bool) -> Tensor | None:
        """All groups at once, by kernels of its own; None where these do not take the input."""
        if torch.compiler.is_compiling() or not self.training or not size or len(input) % size:
            return None
        fused, groups = kernels(f"moco.contrast.batchnorm_{'gpu' if input.is_cuda else 'cpu'}"), len(input) // size
        if fused is None or (self.track_running_stats and self.momentum is None):
            return None
        if not fused.fits(input, residual, groups):
            return None
        running = (self.running_mean, self.running_var, self.num_batches_tracked) if self.track_running_stats else None
        affine, momentum = (self.weight, self.bias), self.momentum or 0.0
        output: Tensor = fused.batch_norm(input, *affine, running, groups, momentum, self.eps, residual, relu)
        return output

    def _by_formula(self, input: Tensor, size: int) -> Tensor:
        """The same written out: a compiler makes two kernels of it, whatever the number of groups."""
        grouped = input.unflatten(0, (-1, size)).to(torch.promote_types(input.dtype, torch.float32))
        over = (1, *range(3, grouped.ndim))
        variance, mean = torch.var_mean(grouped, over, correction=0, keepdim=True)
        normalised = ((grouped - mean) * (variance + self.eps).rsqrt()).flatten(0, 1)
        if self.track_running_stats:
            count = grouped[0, :, 0].numel()
            track(self, mean.flatten(1).mean(dim=0), variance.flatten(1).mean(dim=0) * (count / (count - 1)))
        if self.weight is not None:
            shape = (1, -1, *[1] * (input.ndim - 2))
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        output: Tensor = normalised.to(input.dtype)
        return output

    def extra_repr(self) -> str:
        return f"{self.num_features}, group_size={self.group_size}"


@torch.no_grad()
def track(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Moves a layer's running statistics, float32 (channels,), towards those of a batch, as PyTorch's own does."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked += 1
    # A plain number: a tensor made here would make a GPU wait for it.
    weight = 1 / layer.num_batches_tracked.to(mean) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean, weight)
    layer.running_var.lerp_(variance, weight)


def group_batch_norm(module: nn.Module, group_size: int | None) -> nn.Module:
    """The module with every BatchNorm replaced by a `GroupBatchNorm` that shares its parameters and buffers.

    The names in the state dict stay. Raises ValueError at a layer derived from BatchNorm (synchronised, or fused with
    an activation): what it would mean in groups is not known here; without a group size such a layer stays.
    """
    if type(module) in PLAIN or (isinstance(module, GroupBatchNorm) and group_size is not None):
        assert isinstance(module, _BatchNorm)
        return GroupBatchNorm(module, group_size)
    if isinstance(module, _BatchNorm) and group_size is not None:
        raise ValueError(f"BN groups: the encoder holds a {type(module).__name__}, which cannot be divided into groups")
    for name, child in module.named_children():
        setattr(module, name, group_batch_norm(child, group_size))
    return module


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation with statistics over the batches of all ranks, of whatever sizes.

    On GPUs it computes as PyTorch's layer of that name, which refuses CPUs; there it is computed here, from what
    autograd has. It is not derived from that layer, at which DistributedDataParallel refuses CPUs as well.
    On one rank, and in evaluation, it is the layer that it stands for, whose parameters and buffers it has.
    """

    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.training = like.training
        self._parameters.update(like._parameters)
        self._buffers.update(like._buffers)

    def forward(self, input: Tensor) -> Tensor:
        """(n, channels, ...) to the same."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        return nn.SyncBatchNorm.forward(self, input) if input.is_cuda else self._on_cpu(input)  # type: ignore[arg-type]

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (n, channels, ...) will do."""

    def _on_cpu(self, input: Tensor) -> Tensor:
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        shape, over = (1, -1, *[1] * (values.ndim - 2)), (0, *range(2, values.ndim))
        count = values.numel() // values.shape[1]
        # A rank that has nothing gives zeros, which weigh nothing.
        own_variance, own_mean = torch.var_mean(values, over, correction=0) if count else [values.sum(over)] * 2
        own = torch.stack([own_mean, own_variance, torch.full_like(own_mean, count)])
        means, variances, counts = gather_with_gradient(own[None]).unbind(1)  # (ranks, channels) each
        total = counts.sum(dim=0)
        weights = counts / total.clamp(min=1)
        mean = (weights * means).sum(dim=0)
        variance = (weights * (variances + (means - mean).square())).sum(dim=0)
        if self.track_running_stats and int(total[0]) > 1:
            track(self, mean, variance * (total / (total - 1)))
        output = (values - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm replaced by a `SyncBatchNorm` that shares its parameters and buffers.

    The names in the state dict stay. Raises ValueError, where there are several ranks, at a layer derived from
    BatchNorm (in groups, or fused with an activation): how it would be synchronised is not known here.
    """
    if type(module) in PLAIN:
        assert isinstance(module, _BatchNorm)
        return SyncBatchNorm(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm | nn.SyncBatchNorm) and world_size() > 1:
        raise ValueError(f"BN over ranks: the encoder holds a {type(module).__name__}, which cannot be synchronised")
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child))
    return module


def permutation(n: int, counter: Tensor) -> Tensor:
    """A random order of 0 .. n-1 as a pure function of the counter, the same on every rank: int64 (n,)."""
    return random_bits(n, counter).argsort(stable=True)


def random_bits(n: int, counter: Tensor) -> Tensor:
    """32 random bits, n times, as a pure function of the counter, the same on every rank: int64 (n,).

    They are computed where the counter (int64 scalar) lies, so that a GPU neither waits for the CPU nor needs a
    generator whose state would have to be saved.
    """
    bits = torch.arange(n, device=counter.device) + (counter * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):  # an avalanching 32-bit hash (lowbias32)
        bits = ((bits ^ (bits >> shift)) * multiplier) & 0xFFFFFFFF
    return bits
