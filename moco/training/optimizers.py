"""The optimisers: SGD (He et al. 2020), LARS and AdamW (MoCo v3: for ResNets, for ViTs), Muon (for few epochs)."""

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
    if training.optimizer == "muon":
        return Muon(parameters, lr, momentum, decay)
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


def _by_dimensions(parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those with a gradient: biases and what scales and shifts, then what has several dimensions."""
    trained = [p for p in parameters if p.grad is not None]
    return [p for p in trained if p.ndim <= 1], [p for p in trained if p.ndim > 1]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _accumulated(
    optimizer: Optimizer, parameters: list[Tensor], updates: list[Tensor], momentum: float
) -> list[Tensor]:
    """The momenta v <- momentum v + update, 0 before the first step."""
    if not parameters:
        return []
    for p in parameters:
        if "momentum_buffer" not in optimizer.state[p]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    buffers = [optimizer.state[p]["momentum_buffer"] for p in parameters]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, updates)
    return buffers


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
            vectors, matrices = _by_dimensions(group["params"])
            updates = _gradients(vectors) + self._adapted(matrices, group["weight_decay"], group["trust"])
            trained = vectors + matrices
            if not trained:
                continue
            buffers = _accumulated(self, trained, updates, group["momentum"])
            torch._foreach_sub_(trained, torch._foreach_mul(buffers, group["lr"]))

    def _adapted(self, parameters: list[Tensor], weight_decay: float, trust: float) -> list[Tensor]:
        """Their gradients with weight decay, each scaled to `trust` times the norm of its parameter."""
        if not parameters:
            return []
        updates = torch._foreach_add(_gradients(parameters), parameters, alpha=weight_decay)
        weight_norms, update_norms = (torch.stack(torch._foreach_norm(list(x))) for x in (parameters, updates))
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), trust * weight_norms / update_norms, 1.0)
        torch._foreach_mul_(updates, list(ratios.unbind()))
        return list(updates)


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    A weight of several dimensions, such as a convolution's, is a matrix W of its outputs and all else. For each, G
    being its gradient:

        V <- momentum V + G,   W <- (1 - lr weight_decay) W - lr max(1, rows / columns)^1/2 orthogonal(G + momentum V)

    so that all directions of an update weigh alike. Other parameters take SGD's steps, with the same numbers.
    `torch.optim.Muon` takes matrices only.

    Args:
        params: what is trained.
        lr: learning rate; in a group it may become a scalar tensor on their device.
        momentum: of the gradients, in 0..1.
        weight_decay: decoupled on matrices; SGD's on the others.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step on all parameters that have a gradient; `closure` is not taken."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
            vectors, matrices = _by_dimensions(group["params"])
            if vectors:
                updates = torch._foreach_add(_gradients(vectors), vectors, alpha=decay)
                buffers = _accumulated(self, vectors, list(updates), momentum)
                torch._foreach_sub_(vectors, torch._foreach_mul(buffers, lr))
            if matrices:
                gradients = _gradients(matrices)
                buffers = _accumulated(self, matrices, gradients, momentum)
                steps = orthogonalised(list(torch._foreach_add(gradients, buffers, alpha=momentum)))
                torch._foreach_mul_(matrices, 1 - lr * decay)
                torch._foreach_sub_(matrices, torch._foreach_mul(steps, lr))


_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that, applied five times, brings singular values of 0.002..1 to 0.7..1.2 (Jordan et al.)."""


def orthogonalised(weights: list[Tensor]) -> list[Tensor]:
    """Each of the weights (outputs, ...), a matrix U S V^T, as about max(1, rows / columns)^1/2 U V^T; 0 stays 0.

    A step of Newton-Schulz is X <- (a + b X X^T + c (X X^T)^2) X. Here X X^T alone goes through the steps, of all
    matrices of as many rows together, and the product of the polynomials is multiplied with X at the end: a third of
    the work where X is wide. In float32, as X X^T has the squares of the singular values.
    """
    flat = [weight.movedim(1, -1).flatten(1) for weight in weights]  # of channels-last weights a view
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in flat]
    wide = [matrix / matrix.norm().clamp(min=1e-30) for matrix in wide]
    by_rows: dict[int, list[int]] = {}
    for i, matrix in enumerate(wide):
        by_rows.setdefault(len(matrix), []).append(i)
    for places in by_rows.values():
        polynomials = _newton_schulz(torch.stack([wide[i] @ wide[i].mT for i in places]))
        for i, polynomial in zip(places, polynomials, strict=True):
            wide[i] = polynomial @ wide[i]
    results = []
    for weight, before, matrix in zip(weights, flat, wide, strict=True):
        rows, columns = before.shape
        matrix = matrix if rows <= columns else matrix.mT * (rows / columns) ** 0.5
        results.append(matrix.reshape(weight.movedim(1, -1).shape).movedim(-1, 1))
    return results


def _newton_schulz(gram: Tensor, steps: int = 5) -> Tensor:
    """Of X X^T, (n, rows, rows), the polynomial whose product with X is orthogonal, of the same shape."""
    a, b, c = _QUINTIC
    whole = gram
    for step in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        whole = polynomial @ whole if step else polynomial
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return whole
