"""moco embed, search and duplicates as a user runs them: on one process and on two ranks; and what they refuse."""

import csv
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.cli.main import main
from moco.encoders import Description, build_encoder
from moco.encoders.files import as_safetensors
from moco.evaluation import approximate, feature_files
from tests.ranks import run_ranks

SHARED = "--device cpu --precision fp32 --workers 0"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """weights.safetensors; images: 13 of class a, of which one cannot be read, and 8 of class b, copies of a's."""
    root = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    described = Description("tiny", image_size=16)
    (root / "weights.safetensors").write_bytes(as_safetensors(build_encoder("tiny").state_dict(), described))
    pixels = np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), dtype=np.uint8)
    for name, count in (("a", 13), ("b", 8)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(pixels[number]).save(root / "images" / name / f"{number:02}.png")
    (root / "images" / "a" / "12.png").write_bytes(b"no image")
    (root / "empty").mkdir()
    (root / "text.png").write_text("no image")
    return root


def on_one_and_on_two(place: Path, words: str, out: str) -> tuple[str, str]:
    """The text of the file `out` that a command wrote as one process, and on two ranks."""
    texts = []
    for ranks in (1, 2):
        name = f"{ranks}-{out}"
        ended = run_ranks(ranks, words.replace(out, name), [place])
        assert [rank.code for rank in ended] == [0] * ranks, [rank.err for rank in ended]
        assert not ended[-1].out or ranks == 1
        texts.append((place / name).read_text())
    return texts[0], texts[1]


@pytest.mark.slow
def test_embed_on_two_ranks_writes_what_one_writes_in_the_order_of_the_source(place):
    words = f"embed weights.safetensors --data folder:images --out x.csv --max-bad 0.1 --batch-size 5 --map {SHARED}"
    one, two = (list(csv.DictReader(text.splitlines())) for text in on_one_and_on_two(place, words, "x.csv"))
    names = [f"images/{name}/{number:02}.png" for name, count in (("a", 12), ("b", 8)) for number in range(count)]
    assert [row["name"] for row in one] == [row["name"] for row in two] == names
    assert [row["class"] for row in one] == [row["class"] for row in two] == ["a"] * 12 + ["b"] * 8
    features = [np.array([[float(row[f"f{i}"]) for i in range(8)] for row in rows]) for rows in (one, two)]
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)
    assert (place / "2-x.csv.unreadable.txt").read_text() == "images/a/12.png\n"
    assert not list(place.glob(".*partial"))


@pytest.mark.slow
@pytest.mark.parametrize("queries", ["images/a/03.png", "images/a/03.png images/b/01.png images/a/05.png"])
def test_search_on_two_ranks_finds_what_one_finds(place, queries):
    """Of one query a rank has none; and the images that can be read are fewer than those that are searched for."""
    words = f"search weights.safetensors {queries} --among folder:images --k 30 --table t.json --overwrite"
    one, two = map(json.loads, on_one_and_on_two(place, f"{words} --max-bad 0.1 {SHARED}", "t.json"))
    assert len(one) == 19 * len(queries.split())  # all that can be read but the query itself
    assert [(row["query"], row["name"]) for row in one] == [(row["query"], row["name"]) for row in two]
    assert one[0]["name"] == "images/b/03.png"
    assert one[0]["cosine"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_duplicates_on_two_ranks_are_those_of_one(place):
    words = f"duplicates weights.safetensors --data folder:images --max-bad 0.1 --drop d.txt {SHARED}"
    one, two = on_one_and_on_two(place, words, "d.txt")
    assert one == two == "".join(f"images/b/{number:02}.png\n" for number in range(8))


BAD = [
    ("embed W --data folder:images --out there.csv", "there.csv: exists already: --overwrite replaces it"),
    ("embed W --data folder:images --out no/x.csv", "no such folder: no"),
    ("embed W --data folder:images --out x.txt", "features are written as .npz, .parquet, .csv, .npy"),
    ("embed W --data folder:empty --out x.csv", "empty: no images here"),
    ("embed W --data folder:images --out x.csv", "1 of 21 images cannot be read, more than --max-bad 0.01"),
    ("search W images/a/00.png --among folder:images --out there.png", "there.png: exists already"),
    ("search W empty --among folder:images", "empty: no images here"),
    ("search W text.png --among folder:images --max-bad 0.1", "text.png: "),
    ("search W nowhere.png --among folder:images", "nowhere.png: no such file or folder"),
    ("search W --among folder:images", "the query is missing"),
    ("search W images/a/00.png --among there.npz", "there.npz: is no file of features that moco embed wrote"),
    ("search W images/a/00.png --among folder:empty", "empty: no images here"),
    ("duplicates W --data folder:images --drop there.txt", "there.txt: exists already"),
    ("duplicates W --data folder:empty", "empty: no images here"),
]


def run(words: str, shared: str = SHARED) -> None:
    main([*words.replace(" W ", " weights.safetensors ").split(), *shared.split()])


def refused(words: str, place: Path, monkeypatch, capsys, shared: str = SHARED) -> str:
    """The one line of a command that ends with exit code 2."""
    monkeypatch.chdir(place)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run(words, shared)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("moco: ")]
    assert error.endswith(f"{line}\n")
    return line


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line_and_what_was_there_stays(place, monkeypatch, capsys, words, message):
    there = [place / f"there{suffix}" for suffix in (".csv", ".png", ".npz", ".txt")]
    for path in there:
        path.write_text("mine")
    assert message in refused(words, place, monkeypatch, capsys)
    assert [path.read_text() for path in there] == ["mine"] * 4


@pytest.mark.parametrize(
    "words",
    [
        "embed W --data folder:images --out x.csv",
        "search W images/a/00.png --among folder:images --table t.json",
        "duplicates W --data folder:images --out d.png",
    ],
)
def test_a_read_only_folder_is_refused_before_the_work(place, monkeypatch, capsys, words):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    assert "its folder may not be written to" in refused(words, place, monkeypatch, capsys)


def test_without_pyarrow_a_parquet_is_neither_written_nor_searched(place, monkeypatch, capsys):
    monkeypatch.setattr(feature_files, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    (place / "x.parquet").touch()
    for words in ("embed W --data folder:images --out y.parquet", "search W images/a/00.png --among x.parquet"):
        assert "momentum-contrast[parquet]" in refused(words, place, monkeypatch, capsys)


@pytest.mark.parametrize(
    "words", ["embed W --data folder:images --out z.csv --map", "duplicates W --data folder:images"]
)
def test_too_many_images_for_an_exact_search_are_refused_before_the_work(place, monkeypatch, capsys, words):
    monkeypatch.setattr(approximate, "EXACT_PAIRS", 100)
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda *_: pytest.fail("images are encoded"))
    line = refused(words, place, monkeypatch, capsys)
    assert "21 queries among 21 images: needs a package that is not installed" in line
    assert line.endswith("or no --map" if "--map" in words else "or --index exact")


def test_a_stopped_embed_of_another_precision_is_refused(place, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    words = "embed W --data folder:images --out p.csv --max-bad 0.1"
    monkeypatch.setattr("moco.cli.commands.embed._write", stopped)
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as left:
        run(words)
    assert left.value.code == 130
    bf16 = SHARED.replace("fp32", "bf16")
    assert "other work (precision)" in refused(words, place, monkeypatch, capsys, bf16)
