"""The optimisers: SGD (He et al. 2020), LARS and AdamW (MoCo v3: for ResNets, for ViTs)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from moco.runs.config import Training


def build_optimizer(training: Training, parameters: list[nn.Parameter], recorded: bool = False) -> Optimizer:
    """The optimiser that a configuration describes, in few kernels on a GPU, in one pass over the weights on a CPU.

    Args:
        recorded: its steps will be recorded as a CUDA graph.
    """
    lr, momentum, decay = training.lr, training.sgd_momentum, training.weight_decay
    fused = True if all(p.device.type in ("cuda", "cpu") for p in parameters) else None
    if training.optimizer == "lars":
        return LARS(parameters, lr, momentum, decay)
    optimizer: Optimizer
    if training.optimizer == "adamw":
        optimizer = AdamW(parameters, lr, weight_decay=decay, fused=fused, capturable=recorded)
    else:
        optimizer = SGD(parameters, lr, momentum=momentum, weight_decay=decay, fused=fused)
    if all(p.device.type == "cpu" for p in parameters):
        optimizer.register_step_pre_hook(_same_strides)
    return optimizer


def _same_strides(optimizer: Optimizer, *_: Any) -> None:
    """PyTorch's fused steps on a CPU pair weights and gradients by their places in memory, whatever their strides."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p).copy_(p.grad)
            for name, value in optimizer.state[p].items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                    optimizer.state[p][name] = torch.empty_like(p).copy_(value)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), as for large batches of MoCo v3.

    For each parameter w of more than one dimension, g being its gradient:

        u = g + weight_decay w,   v <- momentum v + (trust |w| / |u|) u,   w <- w - lr v

    where the ratio is 1 if w or u is 0. Biases and the scales and shifts of normalisation have u = g and the ratio 1.

    Args:
        params: what is trained.
        lr: learning rate; in a group it may become a scalar tensor on their device.
        momentum: of the updates, in 0..1.
        weight_decay: on what has more than one dimension.
        trust: how large an update is beside the weights at lr = 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step on all parameters that have a gradient, in multi-tensor operations; `closure` is not taken."""
        assert closure is None
        for group in self.param_groups:
            vectors = [p for p in group["params"] if p.grad is not None and p.ndim <= 1]
            matrices = [p for p in group["params"] if p.grad is not None and p.ndim > 1]
            updates = [p.grad for p in vectors] + self._adapted(matrices, group["weight_decay"], group["trust"])
            trained = vectors + matrices
            if not trained:
                continue
            for p in trained:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in trained]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_sub_(trained, torch._foreach_mul(buffers, group["lr"]))

    def _adapted(self, parameters: list[Tensor], weight_decay: float, trust: float) -> list[Tensor]:
        """Their gradients with weight decay, each scaled to `trust` times the norm of its parameter."""
        if not parameters:
            return []
        gradients = [p.grad for p in parameters if p.grad is not None]
        updates = torch._foreach_add(gradients, parameters, alpha=weight_decay)
        weight_norms, update_norms = (torch.stack(torch._foreach_norm(list(x))) for x in (parameters, updates))
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), trust * weight_norms / update_norms, 1.0)
        torch._foreach_mul_(updates, list(ratios.unbind()))
        return list(updates)
