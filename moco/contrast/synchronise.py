"""Batch normalisation over the images of all ranks: N ranks compute what one rank with the whole batch would."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco.contrast.ranks import gather_with_gradient, world_size
from moco.contrast.shuffle import PLAIN, track


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch normalisation with statistics over the batches of all ranks, which are equally large.

    On GPUs it is PyTorch's layer of that name, which refuses CPUs; there it is computed here, from what autograd has.
    On one rank, and in evaluation, it is the layer that it stands for, whose parameters and buffers it has.
    """

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.training = like.training
        self._parameters.update(like._parameters)
        self._buffers.update(like._buffers)

    def forward(self, input: Tensor) -> Tensor:
        """(n, channels, ...) to the same."""
        if not self.training or world_size() == 1:
            return _BatchNorm.forward(self, input)
        return super().forward(input) if input.is_cuda else self._on_cpu(input)

    def _on_cpu(self, input: Tensor) -> Tensor:
        values = input.float()
        own = torch.var_mean(values, (0, *range(2, values.ndim)), correction=0)
        variances, means = gather_with_gradient(torch.stack(own)[None]).unbind(1)  # (ranks, channels) each
        mean, variance = means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
        if self.track_running_stats:
            count = values.numel() // values.shape[1] * world_size()
            track(self, mean, variance * (count / (count - 1)))
        shape = (1, -1, *[1] * (values.ndim - 2))
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
    if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and world_size() > 1:
        raise ValueError(f"BN over ranks: the encoder holds a {type(module).__name__}, which cannot be synchronised")
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child))
    return module
