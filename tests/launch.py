"""Programs on several gloo ranks."""

import subprocess
import sys

TEARDOWN = "terminate called without an active exception"
"""What PyTorch's threads may end a process with as it leaves, twice in fifty times here: what it was to do is done."""


def launch(ranks: int, *words: str) -> str:
    """Runs a script or `-m MODULE` on so many ranks, under torchrun if asked for any; what it printed."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
    launcher += ["--rdzv-endpoint=localhost:0", "--master-port=0"]
    for _ in range(3):
        command = [sys.executable, *(launcher if ranks else []), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        if done.returncode == 0 or TEARDOWN not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
