"""What the README shows is what runs."""

from pathlib import Path

import pytest
import torch

from moco.cli import main as cli
from tests.documents import blocks, commands, understood, words_of_moco

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [
    words
    for block in blocks(README)
    if block.language == "bash"
    for command in commands(block)
    if (words := words_of_moco(command))
]


def test_the_ten_lines_run():
    (code,) = [text for language, text in blocks(README) if language == "python"]
    loader = [(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)) for _ in range(2)]
    names: dict = {"loader": loader}
    exec(code.replace("65536", "64"), names)
    assert names["loss"].isfinite()
    assert int(names["moco"].queue.enqueued) == 8


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_is_understood(words):
    """Each reaches the function that runs it, its options read."""
    called = understood(words)
    if words[0] == "pretrain":
        assert called.recipe == words[1]


def test_every_command_is_shown():
    assert {words[0] for words in COMMANDS} == set(cli.COMMANDS)
