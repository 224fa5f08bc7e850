"""moco finetune and moco predict as a user runs them, at a size that a test can wait for."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moco
from moco.cli.main import main
from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runtime.errors import UserError
from moco.runtime.signals import Stopped
from moco.transfer.classification import suggest
from moco.transfer.run import FinetuneRun
from tests.ranks import run_ranks

COLOURS = {"blue": (40, 40, 220), "green": (40, 200, 40), "red": (220, 40, 40)}
TINY = [
    *("--encoder", "tinyw0.25", "--image-size", "16", "--batch-size", "8", "--iterations", "24", "--workers", "0"),
    *("--device", "cpu", "--precision", "fp32", "--log-every", "4"),
]


def finetune(*words: object, code: int | None = None) -> None:
    if code is None:
        main(["finetune", *map(str, words)])
        return
    with pytest.raises(SystemExit) as left:
        main(["finetune", *map(str, words)])
    assert left.value.code == code


def paint(folder: Path, colour: tuple[int, int, int], count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    shades = np.random.default_rng(seed).integers(-40, 40, (count, 16, 16, 3))
    for number, shade in enumerate(shades):
        Image.fromarray((np.array(colour) + shade).clip(0, 255).astype(np.uint8)).save(folder / f"{number:02d}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folders of three colours: 12 training images of each, 4 test images."""
    root = tmp_path_factory.mktemp("colours")
    for seed, (name, colour) in enumerate(COLOURS.items()):
        paint(root / "train" / name, colour, 12, seed)
        paint(root / "test" / name, colour, 4, seed + 10)
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "run"
    finetune("random", "--data", f"folder:{data}", *TINY, "--out", folder)
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(FinetuneRun(folder))
    assert path is not None
    return read_checkpoint(path)["model"]


def test_what_can_be_learned_is_learned_and_left_in_the_folder(trained):
    found = results(trained)
    assert found["numbers"] == {"top-1": 100.0, "mean of classes": 100.0}
    assert [row["class"] for row in found["per_class"]] == sorted(COLOURS)
    assert [(row["test_images"], row["training_images"]) for row in found["per_class"]] == [(4, 12)] * 3
    assert found["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert Image.open(trained / "confusion.png").size[0] > 100
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "cross-entropy", "lr"} <= set(lines[0])
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates[-1] < 0.1 * max(rates)  # a cosine


def test_batch_norm_and_all_layers_are_trained(trained, data, tmp_path):
    finetune(trained, "--data", f"folder:{data}", *TINY, "--iterations", 2, "--lr", "0.1", "--out", tmp_path / "more")
    before, after = weights(trained), weights(tmp_path / "more")
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert unmoved == []


def test_a_stopped_run_continues_bit_for_bit(trained, data, tmp_path, monkeypatch):
    from moco.transfer.trainer import Trainer

    class KilledError(Exception):
        pass

    update = Trainer.update

    def killed_at_10(self, samples):
        if self.step == 10:
            raise KilledError
        update(self, samples)

    words = ["random", "--data", f"folder:{data}", *TINY, "--checkpoint-minutes", "0", "--out", tmp_path / "run"]
    monkeypatch.setattr(Trainer, "update", killed_at_10)
    with pytest.raises(KilledError):
        finetune(*words)
    monkeypatch.undo()
    finetune(*words, "--resume", "auto")
    before, after = weights(trained), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_two_ranks_are_one_process(data, tmp_path):
    """BN's statistics over both ranks' images, the same batches, the same accuracy."""
    words = ["random", "--data", f"folder:{data}", *TINY, "--iterations", "3", "--warmup", "1"]
    finetune(*words, "--out", tmp_path / "one")
    line = " ".join(map(str, ["finetune", *words, "--out", tmp_path / "two"]))
    ended = run_ranks(2, line, [tmp_path])
    assert [rank.code for rank in ended] == [0, 0], ended[0].err + ended[1].err
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    assert results(tmp_path / "two")["images"] == 12


def test_classes_are_evaluated_again_by_their_names(trained, tmp_path, capsys):
    before = (trained / "results.json").read_bytes()
    finetune(trained, "--eval-only", "--workers", "0", "--out", tmp_path / "again")
    assert results(tmp_path / "again")["numbers"] == results(trained)["numbers"]
    # Two of the classes, whose numbers differ from those of the run.
    other = tmp_path / "other"
    for name in ("green", "red"):
        paint(other / "train" / name, COLOURS[name], 2, 1)
        paint(other / "test" / name, COLOURS[name], 3, 2)
    finetune(trained, "--eval-only", "--data", f"folder:{other}", "--workers", "0")
    (aside,) = trained.glob("evaluation-*")
    found = results(aside)
    assert found["numbers"]["top-1"] == 100.0
    assert [row["test_images"] for row in found["per_class"]] == [0, 3, 3]
    assert [row["training_images"] for row in found["per_class"]] == [12, 12, 12]
    assert (trained / "results.json").read_bytes() == before
    paint(other / "train" / "pink", (250, 150, 150), 2, 1)
    paint(other / "test" / "pink", (250, 150, 150), 2, 1)
    capsys.readouterr()
    finetune(trained, "--eval-only", "--data", f"folder:{other}", "--workers", "0", code=2)
    assert "classes that the run never saw: pink" in capsys.readouterr().err


def test_predictions(trained, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    images = [data / "test", "broken.png"]
    words = ["--workers", "0", "--device", "cpu", "--precision", "fp32"]
    main(["predict", *map(str, [trained, *images]), "--top", "2", *words])
    printed = capsys.readouterr()
    assert "broken.png" in printed.err
    assert "1 cannot be read" in printed.out
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [Path(row["file"]).parent.name for row in rows] == [row["class"] for row in rows]
    assert len(rows) == 12
    for row in rows:
        assert float(row["probability"]) > float(row["probability 2"])
        assert row["class 2"] in set(COLOURS) - {row["class"]}
    main(["predict", str(trained), str(data / "test" / "red"), "--out", "red.json", *words])
    values = json.loads((tmp_path / "red.json").read_text())
    assert [value["predictions"][0]["class"] for value in values] == ["red"] * 4
    assert sum(each["probability"] for each in values[0]["predictions"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "nowhere.png"], "nowhere.png: no such image or folder"),
        (["RUN", "empty"], "empty: no images"),
        (["RUN", "text.txt"], "text.txt: is no image of a known format"),
        (["nowhere", "empty"], "nowhere: no such path"),
        (["RUN", "text.txt", "--out", "there.csv"], "there.csv: exists already: --overwrite replaces it"),
        (["RUN", "text.txt", "--out", "found.txt"], "found.txt: ends with none of .csv, .json"),
        (["RUN", "text.txt", "--out", "no/found.csv"], "no such folder: no"),
    ],
)
def test_bad_input_of_predict_is_one_line(words, message, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(SystemExit) as left:
        main(["predict", *(str(trained) if word == "RUN" else word for word in words), "--workers", "0"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_a_classifier_in_python(trained, data):
    classifier = moco.load_classifier(trained)
    red = next((data / "test" / "red").iterdir())
    large = torch.tensor(COLOURS["green"], dtype=torch.uint8)[:, None, None].expand(3, 40, 30)
    probabilities = classifier([red, large])
    assert [classifier.classes[k] for k in probabilities.argmax(dim=1)] == ["red", "green"]
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    assert torch.equal(classifier(large[None]), classifier([large]))
    with pytest.raises(UserError, match=r"uint8 \(3, height, width\), not torch.float32"):
        classifier([large.float()])


@pytest.mark.slow
def test_accuracy_over_labels_of_several_starts(trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(suggest, "LINEAR_STEPS", 20)
    words = ["--data", f"folder:{data}", *TINY, "--iterations", "2", "--trials", "2", "--over-labels", "2", "6"]
    words += [
        "--compare",
        "random",
        trained,
        f"{trained},linear",
        f"{trained},knn",
        "--cached",
        "--out",
        tmp_path / "all",
    ]
    finetune(*words)
    entries = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert [entry["labels"] for entry in entries] == ["2"] * 4 + ["6"] * 4
    assert all(len(entry["numbers"]) == 2 for entry in entries)
    assert entries[3]["numbers"][0]["top-1"] == 100.0  # features that know colours
    assert entries[2]["numbers"][0]["top-1"] > 60
    assert (tmp_path / "all" / "comparison.png").is_file()
    runs = {path.name: results(path) for path in (tmp_path / "all").iterdir() if path.is_dir()}
    assert {run["protocol"] for run in runs.values()} == {"finetune", "linear", "knn"}
    assert {row["training_images"] for run in runs.values() for row in run["per_class"]} == {2, 6}
    (linear,) = (tmp_path / "all").glob("*linear-labels-6-seed-0")
    assert moco.load_classifier(linear)([next((data / "test" / "red").iterdir())]).argmax() == 2
    (knn,) = (tmp_path / "all").glob("*knn-labels-6-seed-0")
    with pytest.raises(UserError, match="trains no classifier"):
        moco.load_classifier(knn)
    times = {path: path.stat().st_mtime for path in (tmp_path / "all").glob("*/results.json")}
    finetune(*words)  # all is there: nothing is trained again
    assert times == {path: path.stat().st_mtime for path in (tmp_path / "all").glob("*/results.json")}


def test_a_stopped_comparison_is_continued_by_its_own_command(data, tmp_path, monkeypatch, capsys):
    def stopped(config, folder, continued):
        raise Stopped(15, 3)

    monkeypatch.setattr("moco.transfer.tasks.train_run", stopped)
    words = ["--data", f"folder:{data}", *TINY, "--compare", "random", "--out", str(tmp_path / "all")]
    finetune(*words, code=143)
    command = shlex.join(["moco", "finetune", "--recipe", "own", *words])
    assert f"continue it by:\n  {command}\n" in capsys.readouterr().out


def test_the_encoder_stays_as_it_is_under_the_linear_protocol(trained, data, tmp_path):
    words = ["--data", f"folder:{data}", *TINY, "--iterations", "2", "--protocol", "linear", "--out", tmp_path / "run"]
    finetune(trained, *words)
    before, after = weights(trained), weights(tmp_path / "run")
    encoder = [name for name in before if name.startswith("encoder.")]
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        ("linear --schedule cosine", "schedule step -> cosine"),
        ("linear --warmup 5 --gamma 0.5", "gamma 0.1 -> 0.5, warmup 0 -> 5"),
        ("linear --milestones 3 9", "milestones [14, 19] -> [3, 9]"),
        ("linear --falls 0.5", "falls"),
        ("linear --sgd-momentum 0.5", "sgd_momentum 0.9 -> 0.5"),
        ("knn --lr 3", "lr 0.03 -> 3.0"),
    ],
)
def test_a_schedule_that_a_protocol_would_ignore_is_refused(words, ignored, data, tmp_path, capsys):
    own = TINY if words.startswith("linear") else [*TINY[:4], *TINY[8:]]
    words = ["random", "--data", f"folder:{data}", *own, "--protocol", *words.split(), "--out", tmp_path / "run"]
    finetune(*words, code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("moco: ")]
    assert line.startswith("moco: --protocol ")
    assert f"leave out {ignored}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "DATA"], "what it starts from is missing"),
        (["random"], "--data is missing"),
        (["random", "--data", "folder:nowhere"], "no such path: nowhere"),
        (["nowhere", "--data", "DATA"], "nowhere: no such path"),
        (["random", "--data", "DATA", "--labels", "13"], "class blue has 12 training images"),
        (["random", "--data", "DATA", "--labels", "1%"], "leaves class blue, of 12 training images, without any"),
        (["random", "--data", "folder:flat"], "has no labels to train and test on"),
        (["random", "--recipe", "imagenet-r51"], "did you mean imagenet-r50"),
        (
            ["random", "--data", "DATA", "--encoder", "vit_b_16", "--image-size", "48"],
            "cannot take images of this size",
        ),
        (["--compare", "random", "nowhere,linear", "--data", "DATA"], "nowhere: no such path"),
        (["random", "--eval-only"], "is no run of moco finetune"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(words, message, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "flat", (1, 2, 3), 2, 0)
    finetune(*(f"folder:{data}" if word == "DATA" else word for word in words), "--workers", "0", code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("runs/*"))


def test_unequal_classes_are_reported(data, tmp_path, capsys):
    for seed, (name, count) in enumerate((("green", 9), ("red", 3))):
        paint(tmp_path / "data" / "train" / name, COLOURS[name], count, seed)
        paint(tmp_path / "data" / "test" / name, COLOURS[name], 2, seed)
    finetune("random", "--data", f"folder:{tmp_path / 'data'}", *TINY, "--iterations", "1", "--out", tmp_path / "run")
    assert "9 training images of green, 3 of red" in " ".join(capsys.readouterr().err.split())
