"""`python -m tests.elastic RANKS RESTARTS WORDS`: `moco WORDS` under torchrun's agent, whose ranks are forked.

What restarts them is torchrun's own; but they need not import PyTorch again at each of many restarts.
"""

import os
import sys

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as `moco` itself sets it for ranks, before PyTorch is imported

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import moco.cli.commands.pretrain
import moco.report
import moco.training  # noqa: F401
from moco.cli import main as cli
from moco.runtime import ranks


def rank(words: list[str]) -> None:
    """One rank: returns if the command succeeded, as the agent waits for what a function returns."""

    def leave(code: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            os._exit(code if isinstance(code, int) else 1)

    cli._leave = leave  # type: ignore[assignment]
    ranks._ANSWER, ranks._GRACE = 1.0, 2.0  # ten restarts need not wait for longer
    cli.main(words)


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(sys.argv[1]),
        max_restarts=int(sys.argv[2]),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, rank)(sys.argv[3:])
