"""Activation checkpointing of stages with BN: memory for time, and nothing else changes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within it no running statistics of BN move; what is normalised, and how, stays the same."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]
    # With a momentum of 0 the layers save for backward what they always save, which checkpoint() insists on.
    before = [(layer.momentum, layer.get_buffer("num_batches_tracked").clone()) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer.get_buffer("num_batches_tracked").copy_(batches)


def run_blocks(stage: nn.Module, features: Tensor) -> Tensor:
    """A stage, block by block, keeping only what each block reads; the others are computed again in backward."""
    if not (stage.training and torch.is_grad_enabled()):
        output: Tensor = stage(features)
        return output
    for block in stage.children():

        def contexts(block: nn.Module = block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), statistics_kept(block)

        features = checkpoint(block, features, use_reentrant=False, context_fn=contexts)
    return features
