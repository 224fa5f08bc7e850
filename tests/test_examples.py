"""The examples run, and reach what they claim."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from moco.data.sources.shapes import draw

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_tried_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"plain_loop", "search", "signals"}


@pytest.mark.slow
def test_the_plain_loop_trains():
    # With a learning rate of 0 it is above chance here: the queue is full of real keys after the first epoch.
    assert example("plain_loop")(images=192, epochs=4) < math.log(513)


@pytest.mark.slow
def test_signals_are_classified_better_than_before():
    before, after = example("signals")(steps=100)
    assert before < 0.95
    assert after > before + 0.03


@pytest.mark.slow
def test_a_search_finds_the_query_s_copy_first(tmp_path, capsys):
    torch.manual_seed(0)
    images = draw(torch.arange(64)).images
    for number, image in enumerate(images):
        to_pil_image(image).save(tmp_path / f"{number:02d}.png")
    to_pil_image((images[7].float() * 0.97).to(torch.uint8)).save(tmp_path / "copy.png")
    words = (
        f"{tmp_path} --query {tmp_path / '07.png'} --run {tmp_path / 'run'} --out {tmp_path / 'found.png'} --epochs 1"
        " --batch-size 64 --queue-size 64"
    )
    found = example("search")(words.split())
    assert found[0][0].name == "copy.png"
    assert found[0][1] == pytest.approx(1, abs=0.05)
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert "copy.png" in capsys.readouterr().out
