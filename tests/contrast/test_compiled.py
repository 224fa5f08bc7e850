"""The rounding that kernels share is PyTorch's."""

import numpy as np
import pytest
import torch

compiled = pytest.importorskip(
    "moco.contrast.compiled", reason="Numba has no wheels for this Python", exc_type=ImportError
)


def test_a_float_is_rounded_to_bf16_as_by_pytorch():
    bits = np.random.default_rng(0).integers(0, 0x7F000000, 2000, dtype=np.uint32)
    bits[:1000] = bits[:1000] & np.uint32(0xFFFF0000) | np.uint32(0x8000)  # ties
    bits[::2] |= np.uint32(0x80000000)  # negative
    expected = torch.from_numpy(bits.view(np.float32)).bfloat16().view(torch.uint16).numpy()
    assert [compiled.rounded_to_bf16(each) for each in bits] == expected.tolist()
