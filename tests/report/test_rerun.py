"""The command that a page shows gives the configuration of its run."""

import shlex
from dataclasses import replace

import pytest

from moco.cli.main import main
from moco.report.rerun import rerun
from moco.runs.config import Config, Contrast, Data, Training
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
        replace(Config(), recipe="web-r50"),
    ],
)
def test_the_command_gives_the_configuration(config, monkeypatch):
    called = []
    monkeypatch.setattr("moco.cli.commands.pretrain.pretrain", lambda *arguments: called.append(arguments))
    main(shlex.split(rerun(config, "runs/a b"))[1:])
    found, folder, resume, *_ = called[0]
    assert found == config
    assert str(folder) == "runs/a b"
    assert resume == "no"
