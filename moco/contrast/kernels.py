"""Kernels of our own for a CUDA GPU, which are written in Triton."""

import importlib
from functools import cache
from typing import Any


@cache
def gpu_kernels(module: str) -> Any:
    """The module that holds them; None without Triton, which comes with PyTorch for CUDA on Linux."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
