"""The command that a page shows gives the configuration of its run."""

import shlex
from dataclasses import replace

import pytest

from moco.cli.main import main
from moco.report.rerun import rerun
from moco.runs.config import Config, Contrast, Data, Training, in_steps
from moco.runs.options import with_options
from moco.runs.recipes.recipes import RECIPES


@pytest.mark.parametrize(
    "config",
    [
        RECIPES["cifar10-r18"].config,
        replace(
            RECIPES["imagenet-r50-v2"].config,
            data=Data("folder:some where/it's", download=True),
            contrast=Contrast(bn_group=None, symmetric=True, shuffle=False, mechanism="end-to-end"),
            training=Training(milestones=(1.5, 30), iterations=7, lr=1e-5),
        ),
        in_steps(with_options(RECIPES["cifar10-cpu"].config, iterations=480), set()),
        with_options(RECIPES["cifar10-cpu"].config, iterations=480, epochs=24, warmup=3),
        replace(Config(), recipe="web-r50"),
    ],
)
def test_the_command_gives_the_configuration(config, monkeypatch):
    called = []
    monkeypatch.setattr("moco.cli.commands.pretrain.pretrain", lambda *arguments: called.append(arguments))
    main(shlex.split(rerun(config, "runs/a b"))[1:])
    found, folder, resume, *_ = called[0]
    assert found == config
    if config.training.iterations == 480 and config.training.epochs == 12:
        assert "warmup" not in rerun(config, "x")  # follows from the recipe
    assert str(folder) == "runs/a b"
    assert resume == "no"
