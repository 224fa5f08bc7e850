"""What cannot be trained is refused in one line, before the run's folder is made."""

from pathlib import Path

import pytest
import yaml

from moco.cli.main import main
from moco.runs.options import to_dict
from moco.runs.recipes.recipes import RECIPES


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("shapes-cpu --image-size 4 --encoder vgg11", "--image-size 4: vgg11 cannot take images of this size"),
        ("shapes-cpu --image-size 32 --encoder vit_b_16", "--image-size 32: vit_b_16"),
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
