"""Hugging Face data sets, made here: nothing is fetched."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from moco.data import Encoded, InMemory, open_source
from moco.data.formats.decode import UnreadableImageError
from moco.runtime.errors import UserError

hf = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The library keeps what it loads in a folder of the test, and asks nobody."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    hf.disable_progress_bars()


def encoded(seed, width=8):
    file = io.BytesIO()
    Image.fromarray(pixels(seed, width)).save(file, "PNG")
    return file.getvalue()


def pixels(seed, width=8):
    return np.random.default_rng(seed).integers(0, 256, (8, width, 3), dtype=np.uint8)


def table(n, labels=None, seed=0, column="image", width=8, **others):
    """A table of n images; `labels` maps a column to its numbers, of classes a, b and c."""
    labels = labels or {}
    rows = {column: [{"bytes": encoded(seed + k, width + k % 2), "path": None} for k in range(n)], **others, **labels}
    features = {column: hf.Image(), **{name: hf.Value("int64") for name in others}}
    features |= {name: hf.ClassLabel(names=["a", "b", "c"]) for name in labels}
    return hf.Dataset.from_dict(rows, features=hf.Features(features))


def saved(path, **splits):
    hf.DatasetDict(splits).save_to_disk(str(path))
    return open_source(f"hf:{path}")


def test_train_and_test(tmp_path):
    source = saved(
        tmp_path / "set",
        train=table(6, {"label": [0, 1, 2, 0, 1, 2]}, page=[1] * 6),
        test=table(3, {"label": [2, 1, 0]}, seed=10),
    )
    assert isinstance(source.train, Encoded)
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.test.labels.tolist() == [2, 1, 0]
    assert source.classes == ["a", "b", "c"]
    assert source.labelled
    for k in (5, 0, 3):  # in any order
        assert source.train.read(k) == encoded(k, 8 + k % 2)
        assert np.array_equal(source.train.pixels(k).permute(1, 2, 0).numpy(), pixels(k, 8 + k % 2))
    assert source.test.name(2) == f"hf:{tmp_path / 'set'} test, row 2"


def test_many_threads_read_at_once(tmp_path):
    images = saved(tmp_path / "set", train=table(40)).train
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.read, list(range(40)) * 5)) == [encoded(k, 8 + k % 2) for k in range(40)] * 5


def test_it_travels_to_another_process(tmp_path):
    images = saved(tmp_path / "set", train=table(4)).train
    assert pickle.loads(pickle.dumps(images)).read(2) == images.read(2)


def test_images_of_one_size_come_into_memory(tmp_path):
    one_size = table(4).filter(lambda row: row["image"].width == 8)
    assert isinstance(saved(tmp_path / "set", train=one_size).train, InMemory)


def test_one_table_without_labels(tmp_path):
    table(25).save_to_disk(str(tmp_path / "set"))
    source = open_source(f"hf:{tmp_path / 'set'}")
    assert (len(source.train), source.test, source.classes, source.labelled) == (25, None, None, False)


def test_a_folder_that_the_library_loads(tmp_path):
    for name in ("ant", "bee"):
        for k in range(2):
            path = tmp_path / "set" / "train" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(k, 8 + k))
    source = open_source(f"hf:{tmp_path / 'set'}")
    assert source.classes == ["ant", "bee"]
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.train.read(3) == encoded(1, 9)


@pytest.mark.parametrize("unknown", [[-1, -1], [None, 0]])
def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path, unknown):
    labelled = {"train": table(4, {"label": [0, 1, 2, 0]}), "validation": table(3, {"label": [1, 1, 0]}, seed=7)}
    source = saved(tmp_path / "set", test=table(2, {"label": unknown}), **labelled)
    assert source.test.labels.tolist() == [1, 1, 0]


def test_a_column_named_label_comes_before_others(tmp_path):
    labels = {"coarse": [0, 0, 0, 0], "fine_label": [0, 1, 2, 0]}
    source = saved(tmp_path / "set", train=table(4, labels, column="img"))
    assert source.train.labels.tolist() == [0, 1, 2, 0]


def test_a_row_without_an_image_is_an_unreadable_one(monkeypatch):
    rows = {"image": [{"bytes": encoded(0), "path": None}, None, {"bytes": None, "path": "/no/such/file.png"}]}
    loaded = hf.Dataset.from_dict(rows, features=hf.Features({"image": hf.Image()}))
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments: loaded)
    images = open_source("hf:x", cache_mb=0).train
    assert images.read(0) == encoded(0)
    for row, what in ((1, "there is no image"), (2, "No such file")):
        with pytest.raises(UnreadableImageError, match=f"row {row}: {what}"):
            images.read(row)


def test_a_name_on_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments: asked.append(arguments) or {"train": table(2)})
    open_source("hf:someone/flowers")
    open_source("hf:someone/flowers:small")
    assert asked == [("someone/flowers", None), ("someone/flowers", "small")]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": hf.Dataset.from_dict({"text": ["a"], "number": [1]})},
            "has no column of images, only text, number",
        ),
        ({"en": table(1), "de": table(1)}, "has no split named train, only en, de"),
        ({"train": table(1).select([])}, "has no images"),
    ],
)
def test_nothing_usable(monkeypatch, splits, message):
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments: hf.DatasetDict(splits))
    with pytest.raises(UserError, match=f"hf:x.*{message}"):
        open_source("hf:x")


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: cannot be loaded: ") as error:
        open_source(f"hf:{tmp_path / 'empty'}")
    assert "\n" not in str(error.value)

    def refuse(*arguments):
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(UserError, match=r"^hf:a/b: cannot be loaded: ConnectionError: no route$"):
        open_source("hf:a/b")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("moco.data.sources.hf.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'momentum-contrast\[hf\]'"):
        open_source("hf:a/b")
