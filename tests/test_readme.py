"""What the README shows is what runs."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moco.cli import main as cli

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [
    words
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if "moco" in (words := shlex.split(line, comments=True)) and words[0] in ("moco", "torchrun")
]


def test_the_ten_lines_run():
    (code,) = PYTHON
    loader = [(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)) for _ in range(2)]
    names: dict = {"loader": loader}
    exec(code.replace("65536", "64"), names)
    assert names["loss"].isfinite()
    assert int(names["moco"].queue.enqueued) == 8


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_is_understood(words, monkeypatch):
    """Each reaches the function that runs it; `pretrain` parses the recipe and its options itself."""
    called, import_command = [], cli._command
    stand_in = SimpleNamespace(run=called.append, main=called.append, list_sources=lambda: None)
    monkeypatch.setattr(cli, "_command", lambda name: import_command(name) if name == "pretrain" else stand_in)
    monkeypatch.setattr("moco.cli.commands.pretrain.pretrain", lambda config, *_: called.append(config))
    name, *rest = words[words.index("moco") + 1 :]
    cli.main([name, *rest])
    assert len(called) == 1
    if name == "pretrain":
        assert called[0].recipe == rest[0]


def test_every_command_is_shown():
    shown = {words[words.index("moco") + 1] for words in COMMANDS}
    assert shown == set(cli.COMMANDS)
