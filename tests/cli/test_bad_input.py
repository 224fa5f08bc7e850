"""Bad input is one line and exit code 2, before the run's folder is made."""

import shlex

import pytest

from moco.cli.main import main

FILES = {
    "text.yaml": "training:\n  lr: 3e-2\n",
    "broken.yaml": "a: [1\n b",
    "unknown.yaml": "trainin:\n  lr: 0.1\n",
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shapes-cpu --image-size 4", "--image-size 4: "),
        (
            "shapes-cpu --encoder vit_s_16 --image-size 32",
            "--image-size 32: vit_s_16 cannot take images of this size: it takes 224 x 224 pixels only",
        ),
        ("shapes-cpu --batch-size 6 --accumulation-steps 4", "--batch-size 6: is not a multiple of 4"),
        ("text.yaml", "training: lr: '3e-2' is not of type float: write 0.03"),
        ("broken.yaml", "broken.yaml: cannot be read as a recipe: line 2: expected ',' or ']'"),
        ("unknown.yaml", "unknown.yaml: no such group of options: trainin"),
        ("nosuch.yaml", "nosuch.yaml: cannot be read as a recipe: No such file or directory"),
        ("shapes-cpu --lr nan", "--lr nan: above 0"),
        ("shapes-cpu --lr inf", "--lr inf: above 0, and finite"),
        ("shapes-cpu --temperature -1", "--temperature -1.0: above 0"),
        ("shapes-cpu --milestones nan 3", "--milestones (nan, 3.0): at least 0"),
        ("shapes-cpu --milestones -1", "--milestones"),
        ("shapes-cpu --warmup inf", "--warmup inf: at least 0, and finite"),
        ("shapes-cpu --weight-decay inf", "--weight-decay inf: at least 0, and finite"),
        ("shapes-cpu --device gpu9", "--device gpu9: no such device"),
        ("shapes-cpu --data folder:empty", "empty: no images here"),
        ("shapes-cpu --resume", "out: no such "),
        ("shapes-cpu --no-such-option 3", "no option --no-such-option"),
    ],
)
def test_one_line_and_no_folder(tmp_path, monkeypatch, capsys, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as left:
        main(shlex.split(f"pretrain {line} --out out"))
    assert left.value.code == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith("moco: ")
    assert message in only
    assert "[Errno" not in only
    assert not (tmp_path / "out").exists()
