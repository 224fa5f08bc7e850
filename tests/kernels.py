"""Triton's kernels in tests: as they are on a GPU, else by Triton's interpreter (`conftest.py` chooses it)."""

import importlib
from types import ModuleType

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kernels(module: str) -> ModuleType:
    """The module. Skips the test file where there is no Triton."""
    triton = pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA on Linux")
    if DEVICE.type == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip("the interpreter of Triton before 3.9 fails with NumPy 2.4 and later", allow_module_level=True)
    return importlib.import_module(module)
