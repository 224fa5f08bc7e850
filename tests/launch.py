"""Programs in processes of their own, on several gloo ranks if asked for."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

TEARDOWN = "terminate called without an active exception"
"""What PyTorch's threads may end a process with as it leaves, twice in fifty times here: what it was to do is done."""
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--master-port=0"]
"""On a port that the operating system chooses, so that several launches at once do not meet."""


def launch(ranks: int, *words: str, timeout: float = 240) -> str:
    """Runs a script or `-m MODULE` on so many ranks, under torchrun if asked for any; what it printed.

    Fails with what it wrote to stderr if it ends with an error, and if it takes longer than `timeout` seconds, after
    which none of its processes is left.
    """
    command = [sys.executable, *([*TORCHRUN, f"--nproc-per-node={ranks}"] if ranks else []), *words]
    for _ in range(3):
        code, out, err = _run(command, timeout)
        if code == 0 or TEARDOWN not in err:
            break
    assert code == 0, f"exit code {code}: {' '.join(words)}\n{err[-3000:]}"
    return out


def free_port() -> int:
    """A port of localhost at which nobody listens now."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


def _run(command: list[str], timeout: float) -> tuple[int | None, str, str]:
    """Exit code (None: it took too long), stdout, stderr."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=timeout)
            return process.returncode, out, err
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its ranks, which are in sessions of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            return None, "", f"took longer than {timeout:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
