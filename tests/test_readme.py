"""What the README shows is what runs."""

import importlib
import re
import shlex
from pathlib import Path

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
def test_each_command_is_one_that_is_understood(words, monkeypatch):
    called = []
    command = words[words.index("moco") + 1]
    module = importlib.import_module(f"moco.cli.commands.{command}")
    names = {"pretrain": ["pretrain"], "recipes": ["list_recipes", "show_recipe"]}.get(command, ["run"])
    for name in names:
        monkeypatch.setattr(module, name, lambda *arguments: called.append(arguments))
    cli.main(words[words.index("moco") + 1 :])
    assert len(called) == 1


def test_every_command_is_shown():
    shown = {words[words.index("moco") + 1] for words in COMMANDS}
    assert shown == set(cli.COMMANDS)
