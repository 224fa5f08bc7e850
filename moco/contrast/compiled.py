"""How kernels for a CPU are compiled: by Numba, once on a machine; the machine code is kept beside the source.

They are IEEE arithmetic in the order that is written, without fused or reordered operations: every processor gives the
same bits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_HALF_ULP, _SHIFT, _LAST_BIT = np.uint32(0x7FFF), np.uint32(16), np.uint32(1)


def compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code, that runs without the interpreter's lock."""
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # neither the source's folder nor the user's cache can be written to
        return njit(function, nogil=True, error_model="numpy")


@compiled
def rounded_to_bf16(bits):  # type: ignore[no-untyped-def]
    """The bits of a float32, uint32, as those of a bfloat16, uint16: to the nearest, ties to even."""
    # Machine code that calls it is kept with the caller's file, and not compiled again when this one alone changes.
    return np.uint16((bits + _HALF_ULP + ((bits >> _SHIFT) & _LAST_BIT)) >> _SHIFT)
