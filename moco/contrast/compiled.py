"""How kernels for a CPU are compiled: by Numba, once on a machine; the machine code is kept beside the source.

They are IEEE arithmetic in the order that is written, without fused or reordered operations: every processor gives the
same bits.
"""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code, that runs without the interpreter's lock."""
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # neither the source's folder nor the user's cache can be written to
        return njit(function, nogil=True, error_model="numpy")
