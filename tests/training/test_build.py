"""What cannot be trained is refused in one line, before the run's folder is made."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from moco.cli.main import main
from moco.runs.config import Encoder
from moco.runs.options import to_dict
from moco.runs.recipes.recipes import RECIPES
from moco.training import build, device_of
from tests.training.test_fast import CONFIG


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("shapes-cpu --image-size 4 --encoder alexnet", "--image-size 4: alexnet cannot take images of this size"),
        ("shapes-cpu --batch-size 6 --accumulation-steps 4", "--batch-size 6: is not a multiple of 4"),
        ("shapes-cpu --mechanism end-to-end --accumulation-steps 2", "--accumulation-steps 2: --mechanism end-to-end"),
        ("shapes-cpu --mechanism memory-bank --symmetric", "--mechanism memory-bank: has one view of an image"),
        ("shapes-cpu --encoder resnet51", "resnet51"),
        ("own.yaml", "own.yaml: training: lr: '3e-2' is not of type float: write 0.03"),
    ],
)
def test_refused_in_one_line(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    values = {name: part for name, part in to_dict(RECIPES["shapes-cpu"].config).items() if name != "recipe"}
    Path("own.yaml").write_text(yaml.safe_dump(values).replace("lr: 0.06", "lr: 3e-2").replace("lr: 0.03", "lr: 3e-2"))
    with pytest.raises(SystemExit) as left:
        main(["pretrain", *words.split(), "--device", "cpu", "--out", "run"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_ranks_have_the_same_weights_and_generators_of_their_own(monkeypatch):
    """What they draw at random in training, as dropout, differs."""
    device, weights, drawn = device_of(CONFIG.compute), [], []
    for number in (0, 1, 1):
        monkeypatch.setattr(build, "rank", lambda number=number: number)
        weights.append(build.build_mechanism(CONFIG, 64, 4, device).state_dict())
        drawn.append(torch.rand(4))
    assert all(torch.equal(one, other) for one, other in zip(weights[0].values(), weights[1].values(), strict=True))
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("is_vit", [False, True])
def test_moco_v3_has_a_deeper_projector_and_bn_at_the_end_for_a_vit(monkeypatch, is_vit):
    monkeypatch.setattr(build, "patch_projection", lambda encoder: encoder if is_vit else None)
    config = replace(CONFIG, contrast=replace(CONFIG.contrast, mechanism="moco-v3", hidden=16))
    mechanism = build.build_mechanism(config, 64, 9, device_of(config.compute))
    linear = [layer for layer in mechanism.query.head if isinstance(layer, nn.Linear)]
    assert (len(linear), isinstance(mechanism.predictor[-1], nn.Linear)) == ((3, False) if is_vit else (2, True))
    assert mechanism.total_steps == 9


def test_an_encoder_whose_last_map_is_one_pixel_takes_images_of_that_size():
    """BN refuses a batch of one such image in training, in which the check is not."""
    config = replace(CONFIG, views=replace(CONFIG.views, image_size=32), encoder=Encoder("resnet18w0.25"))
    build.check_mechanism(config, new=False)
