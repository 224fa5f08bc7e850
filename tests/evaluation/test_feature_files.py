"""What is written is read again, and what others read."""

import csv
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco.data import InMemory
from moco.evaluation import Embedding, FeatureFile, feature_files
from moco.evaluation.feature_writer import Written, check_output, write_features
from moco.runtime.errors import UserError

N, D = 23, 5
VALUES = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
ABOUT = {"weights": "w", "encoder": "tiny", "image_size": 8, "fingerprint": "1", "data": "npz:x"}


class Named(InMemory):
    def name(self, position: int) -> str:
        return f"folder/ü {position}, {'x' * (position % 5)}.png"


@pytest.fixture
def embedding(tmp_path, monkeypatch) -> Embedding:
    """15 and 10 images, of which two have no row; read four at a time."""
    monkeypatch.setattr("moco.evaluation.embedding.BLOCK", 4)
    monkeypatch.setattr(feature_files, "BLOCK", 4)
    monkeypatch.setattr("moco.evaluation.feature_writer.BLOCK", 4)
    (tmp_path / "f").mkdir()
    (tmp_path / "f/features").write_bytes(VALUES.numpy().tobytes())
    sets = {
        "train": Named(torch.zeros(15, 3, 1, 1, dtype=torch.uint8), torch.arange(15) % 2),
        "test": Named(torch.zeros(10, 3, 1, 1, dtype=torch.uint8)),
    }
    return Embedding(sets, tmp_path / "f", D, [3, 17])


def write(embedding, path, **more) -> list:
    write_features(path, Written(embedding, ABOUT, ["cat", "dog"], **more))
    return list(embedding.rows())


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_file_is_read_again(embedding, tmp_path, suffix, normalise):
    rows = write(embedding, tmp_path / f"x{suffix}", normalise=normalise)
    file = FeatureFile.open(tmp_path / f"x{suffix}")
    expected = F.normalize(VALUES, dim=1) if normalise else VALUES
    assert torch.equal(torch.cat(list(file.blocks())), expected)
    assert [len(block) for block in file.blocks()] == [4, 4, 4, 4, 4, 3]
    assert (len(file), file.num_features, file.about["classes"]) == (N, D, ["cat", "dog"])
    assert list(file.rows(range(N)).values()) == rows
    assert file.rows([22, 3, 3]) == {3: rows[3], 22: rows[22]}
    file.require("1", "w")
    with pytest.raises(UserError, match=r"another encoder .tiny of w at 8 pixels, 5 features. than v"):
        file.require("2", "v")


def test_numpy_reads_an_npz_without_pickle(embedding, tmp_path):
    rows = write(embedding, tmp_path / "x.npz", places=torch.arange(2.0 * N).view(N, 2))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["features"], VALUES.numpy())
        assert arrays["names"].tolist() == [row.name for row in rows]
        assert arrays["splits"].tolist() == [row.split for row in rows]
        assert arrays["positions"].tolist() == [row.position for row in rows]
        assert arrays["labels"].tolist() == [row.label for row in rows]
        assert arrays["map"].tolist() == [[2.0 * i, 2.0 * i + 1] for i in range(N)]
        assert arrays["classes"].tolist() == ["cat", "dog"]
        assert arrays["unreadable"].tolist() == ["folder/ü 3, xxx.png", "folder/ü 2, xx.png"]
        assert json.loads(str(arrays["about"]))["data"] == "npz:x"


def test_pandas_reads_a_parquet(embedding, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = write(embedding, tmp_path / "x.parquet", places=torch.arange(2.0 * N).view(N, 2))
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert list(table.columns) == ["name", "split", "position", "label", "class", "x", "y", "features"]
    assert table["name"].tolist() == [row.name for row in rows]
    assert table["class"].tolist() == [{0: "cat", 1: "dog", -1: ""}[row.label] for row in rows]
    assert np.array_equal(np.stack(table["features"]), VALUES.numpy())
    assert table["y"].tolist() == [2.0 * i + 1 for i in range(N)]


def test_a_csv_holds_float32_exactly(embedding, tmp_path):
    rows = write(embedding, tmp_path / "x.csv", places=torch.zeros(N, 2))
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row.name for row in rows]
    values = torch.tensor([[float(line[f"f{i}"]) for i in range(D)] for line in lines])
    assert torch.equal(values, VALUES)
    assert {line["x"] for line in lines} == {"0"}


def test_beside_an_npy_stands_what_its_rows_are(embedding, tmp_path):
    rows = write(embedding, tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), VALUES.numpy())
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["name", "split", "position", "label", "class"]
    assert [line[0] for line in lines[1:]] == [row.name for row in rows]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4 no", "another"])
def test_other_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif suffix == ".npz":
        np.savez(path, images=np.zeros(3))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="is no file of features that moco embed wrote, or a damaged one"):
        FeatureFile.open(path)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_damaged_file_is_an_error_in_one_line_wherever_it_is_damaged(embedding, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write(embedding, path)
    whole, found = path.read_bytes(), 0
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            file = FeatureFile.open(path)
            list(file.blocks())
            file.rows([0, N - 1])
        except UserError:  # any other error fails the test
            found += 1
    assert found > 30


@pytest.mark.parametrize("lost", ["num_features", "encoder", "weights", "image_size"])
def test_a_description_that_lacks_something_is_a_damaged_file(embedding, tmp_path, monkeypatch, lost):
    described = Written.described

    def lacking(self):
        return json.dumps({name: value for name, value in json.loads(described(self)).items() if name != lost})

    monkeypatch.setattr(Written, "described", lacking)
    write(embedding, tmp_path / "x.npz")
    with pytest.raises(UserError, match="damaged"):
        FeatureFile.open(tmp_path / "x.npz")


def test_a_file_that_was_cut_is_an_error(embedding, tmp_path):
    write(embedding, tmp_path / "x.npz")
    file = FeatureFile.open(tmp_path / "x.npz")
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        list(file.blocks())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", "features are written as .npz, .parquet, .csv, .npy"),
        ("no/x.npz", "no such folder"),
        ("there.npz", "exists already: --overwrite replaces it"),
        ("there.npy", "there.csv: exists already"),
    ],
)
def test_outputs_are_checked(tmp_path, name, message):
    for there in ("there.npz", "there.csv"):
        (tmp_path / there).touch()
    with pytest.raises(UserError, match=message):
        check_output(tmp_path / name, overwrite=False)
    if "there" in name:
        check_output(tmp_path / name, overwrite=True)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    with pytest.raises(UserError, match=r"pip install 'momentum-contrast\[parquet\]'"):
        check_output(tmp_path / "x.parquet", overwrite=False)
    with pytest.raises(UserError, match=r"pip install 'momentum-contrast\[parquet\]'"):
        FeatureFile.open(tmp_path / "x.parquet")


@pytest.mark.parametrize("what", ["version", "format"])
def test_a_file_of_another_version_is_refused(embedding, tmp_path, monkeypatch, what):
    described = Written.described
    monkeypatch.setattr(Written, "described", lambda self: json.dumps(json.loads(described(self)) | {what: 2}))
    write(embedding, tmp_path / "x.npz")
    with pytest.raises(UserError, match="no file of features"):
        FeatureFile.open(tmp_path / "x.npz")


def test_features_of_another_type_are_refused(tmp_path):
    described = json.dumps({"format": "moco features", "version": 1, "num_features": 2, **ABOUT})
    np.savez(tmp_path / "x.npz", features=np.zeros((3, 2)), about=np.array(described))
    with pytest.raises(UserError, match="no file of features"):
        FeatureFile.open(tmp_path / "x.npz")
