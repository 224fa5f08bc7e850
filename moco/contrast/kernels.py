"""Kernels of our own: in Triton for a CUDA GPU, in Numba for a CPU."""

import importlib
from functools import cache
from typing import Any


@cache
def kernels(module: str) -> Any:
    """The module that holds them; None where what compiles them is not there.

    Triton comes with PyTorch for CUDA on Linux; Numba has no wheels yet where Python is newer than it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
