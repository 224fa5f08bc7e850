"""Forks the ranks of small programs, so that PyTorch is imported once: a line of JSON in, a line of JSON out.

In:  {"program": MODULE, "ranks": [{"words": [...], "folder": PATH, "sabotage": NAME}, ...], "out": PATH}
     MODULE has `main(words)`; "sabotage" may be left out
Out: the exit code of each, negative if by a signal; what it printed is in OUT/RANK.out and OUT/RANK.err.
"""

import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as `moco` itself sets it for ranks, before PyTorch is imported

import torch

import moco.report  # all that is heavy
import moco.training  # noqa: F401
from tests.sabotage import SABOTAGES

SECONDS = 100
"""After which a rank that hangs ends by SIGALRM."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run(program: str, rank: int, ranks: int, port: int, job: dict, out: Path) -> None:
    """One rank, in a process of its own; does not return."""
    signal.alarm(SECONDS)
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(out / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name in job["sabotage"].split():
        SABOTAGES[name](rank)
    code: object = 1
    try:
        importlib.import_module(program).main(job["words"])
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        jobs, port, children = request["ranks"], free_port(), []
        for rank, job in enumerate(jobs):
            child = os.fork()
            if child == 0:
                run(request["program"], rank, len(jobs), port, job, Path(request["out"]))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)
