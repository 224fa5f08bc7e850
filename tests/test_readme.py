"""What the README shows is what runs."""

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
    commands = pytest.importorskip("moco.commands")
    names = {*cli.COMMANDS, "list_recipes", "show_recipe"} - {"recipes"}
    for name in names:
        monkeypatch.setattr(commands, name, lambda *arguments: called.append(arguments))
    if "--resume" in words:
        monkeypatch.setattr("moco.runs.folder.Run.open", lambda path: FakeRun())
    cli.main(words[words.index("moco") + 1 :])
    assert len(called) == 1


class FakeRun:
    def config(self):
        from moco.runs.recipes.recipes import get_recipe

        return get_recipe("cifar10-r18").config

    def require(self, config):
        assert config == self.config()


def test_every_command_is_shown():
    shown = {words[words.index("moco") + 1] for words in COMMANDS}
    assert shown == set(cli.COMMANDS)
