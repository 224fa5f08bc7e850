"""Random weights stored as a seed: their generator's draws, a scale for each, and by how many last bits they differ.

Weights that were drawn in the order of the parameters (`torch.rand` for the weights of norm layers, `torch.randn` for
all else) and then scaled take an eighth of the space of the numbers themselves, and are restored to the last bit.
"""

import math

import numpy as np
import torch
from torch import Generator

LARGE = 1000
"""Tensors of fewer numbers are stored as they are."""
SEEDS = range(32)


def box_muller(draws: np.ndarray) -> np.ndarray:
    """As `torch.randn`, 16 draws at a time, each function in float64 and rounded: alike on every processor."""
    u, v = draws.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius = np.sqrt(np.float32(-2) * np.log((np.float32(1) - u).astype(np.float64)).astype(np.float32))
    angle = (np.float32(2 * math.pi) * v).astype(np.float64)
    normal = [radius * function(angle).astype(np.float32) for function in (np.cos, np.sin)]
    return np.stack(normal, 1).reshape(-1)


def randn(count: int, generator: Generator) -> np.ndarray:
    """`torch.randn(count)` but for rounding; if fewer than 16, those of this processor."""
    if count < 16:
        return torch.randn(count, generator=generator).numpy()
    draws = torch.rand(count, generator=generator).numpy()
    values = np.empty(count, np.float32)
    values[: count // 16 * 16] = box_muller(draws[: count // 16 * 16])
    if count % 16:
        values[-16:] = box_muller(torch.rand(16, generator=generator).numpy())
    return values


def drawn(seed: int, names: list[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """What a generator with this seed gives for the parameters in their order; only the large ones are kept."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name in names:
        count = math.prod(shapes[name])
        if name.endswith("norm.weight"):
            torch.rand(count, generator=generator)
        else:
            values = randn(count, generator)
            if count >= LARGE:
                found[name] = values.reshape(shapes[name])
    return found


def encode(names: list[str], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with its large weights as a seed, scales and differences; unchanged if no seed of a few gives them."""
    shapes = {name: state[name].shape for name in names}
    large = next(name for name in names if state[name].size >= LARGE)
    for seed in SEEDS:
        found = drawn(seed, names, shapes)
        if np.corrcoef(found[large].ravel(), state[large].ravel())[0, 1] < 0.999:
            continue
        coded = {"seed": np.asarray(seed)} | {f"plain/{k}": v for k, v in state.items() if k not in found}
        for name, draws in found.items():
            wide = draws.astype(np.float64)
            scale = (wide * state[name]).sum() / (wide**2).sum()
            steps = state[name].view(np.int32) - (wide * scale).astype(np.float32).view(np.int32)
            coded[f"scale/{name}"] = scale
            coded[f"steps/{name}"] = ((steps << 1) ^ (steps >> 31)).view(np.uint32)  # small, of either sign
        return coded
    return {f"plain/{k}": v for k, v in state.items()}


def decode(names: list[str], coded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state that was encoded."""
    plain, scales, every = (
        {k.removeprefix(kind): v for k, v in coded.items() if k.startswith(kind)}
        for kind in ("plain/", "scale/", "steps/")
    )
    if not scales:
        return plain
    found = drawn(int(coded["seed"]), names, {k: v.shape for k, v in (plain | every).items()})
    for name, steps in every.items():
        near = (found[name].astype(np.float64) * scales[name]).astype(np.float32).view(np.int32)
        plain[name] = (near + ((steps >> 1).view(np.int32) ^ -(steps & 1).view(np.int32))).view(np.float32)
    return plain
