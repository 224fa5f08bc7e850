"""moco demo shows the gain, and commands that use an encoder at once."""

import shlex
from dataclasses import replace

import pytest

from moco.cli.main import main
from moco.runs.options import with_options
from moco.runs.recipes import RECIPES


@pytest.mark.slow
def test_what_it_shows_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["shapes-cpu"]
    small = with_options(recipe.config, per_class=30, iterations=4, knn_every=4, monitor_every=0)
    monkeypatch.setitem(RECIPES, "shapes-cpu", replace(recipe, config=small))
    main(["demo", "--out", "my demo"])
    out = capsys.readouterr().out
    assert "pre-trained encoder" in out
    shown = [shlex.split(line) for line in out.splitlines() if line.startswith("  moco ")]
    assert [words[1] for words in shown] == ["search", "embed", "finetune", "predict"]
    for words in shown:
        assert words[2] in ("shapes-cpu", "my demo/classifier")
        main(words[1:])
    assert {"found.png", "features.npz", "predictions.csv"} <= {path.name for path in (tmp_path / "my demo").iterdir()}
    assert len((tmp_path / "my demo/predictions.csv").read_text().splitlines()) == 11
