"""Runs that take a second."""

import shlex
import shutil
from pathlib import Path

import yaml

from moco.cli.main import main

HOSTILE = "<script>alert('&')</script>"


def train(source: str, out: Path, more: str = "") -> Path:
    """A run that takes a second."""
    small = (
        "--encoder tinyw0.25 --image-size 16 --dim 16 --queue-size 48 --batch-size 16 --bn-group 8 --epochs 2 "
        "--warmup 0 --knn-k 5 --knn-every 1 --log-every 2 --device cpu --precision fp32"
    )
    main(["pretrain", "cifar10-cpu", "--data", source, *shlex.split(f"{small} {more}"), "--out", str(out)])
    return out


def copied(run: Path, out: Path, source: str, **data: object) -> Path:
    """The run as if it had been trained on other images."""
    shutil.copytree(run, out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["data"] |= {"source": source, **data}
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    return out
