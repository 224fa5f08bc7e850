"""Precise BN: the statistics for evaluation, computed anew over many batches with the weights as they are."""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco.contrast.collectives import world_size
from moco.transfer.detection.checkpointing import statistics_kept


@torch.no_grad()
def precise_bn(detector: nn.Module, batches: Iterable[tuple[object, ...]]) -> None:
    """Sets every BN's running mean and (biased) variance to those of all pixels of all batches, over all ranks.

    Batches are equally many on every rank. The detector runs in training mode, since that is how its features were
    normalised when it was trained, and is left in the mode that it had.

    Args:
        batches: the arguments of `detector` for each, images and targets.
    """
    layers = [m for m in detector.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    sums = {
        layer: torch.zeros(3, layer.num_features, dtype=torch.float64, device=layer.weight.device) for layer in layers
    }

    def adder(layer: _BatchNorm) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
            values = inputs[0]
            pixels = values.numel() // layer.num_features
            if pixels:
                dims = (0, *range(2, values.ndim))
                wide = values.to(torch.promote_types(values.dtype, torch.float32))
                variance, mean = (each.double() for each in torch.var_mean(wide, dims, correction=0))
                sums[layer] += pixels * torch.stack([torch.ones_like(mean), mean, variance + mean.square()])

        return add

    hooks = [layer.register_forward_pre_hook(adder(layer)) for layer in layers]
    was_training = detector.training
    detector.train()
    try:
        with statistics_kept(detector):
            for batch in batches:
                detector(*batch)
    finally:
        detector.train(was_training)
        for hook in hooks:
            hook.remove()
    for layer, total in sums.items():
        if world_size() > 1:
            dist.all_reduce(total)
        count, mean, square = total[0].clamp(min=1), total[1] / total[0].clamp(min=1), total[2] / total[0].clamp(min=1)
        if bool((count > 1).all()):
            layer.running_mean.copy_(mean)  # type: ignore[union-attr]
            layer.running_var.copy_(square - mean.square())  # type: ignore[union-attr]
