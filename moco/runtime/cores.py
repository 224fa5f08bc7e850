"""How this process shares the cores of a CPU with others."""

import os

_SPINS = "10000"


def wait_briefly() -> None:
    """Makes a thread that has done its part of an operation sleep after some microseconds; before PyTorch is imported.

    By default it waits in a loop that keeps its core busy, for milliseconds, while the thread that it waits for may
    need that very core: beside another busy process a step then takes several times as long. What the user has set
    stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
