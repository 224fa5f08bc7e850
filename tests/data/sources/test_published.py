"""Published data sets in the layouts in which they come, made small; torchvision's checksums are its own affair."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from moco.data import InMemory, open_source
from moco.runtime.errors import UserError


def images(n, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def write(folder, n, side=8):
    folder.mkdir(parents=True)
    for i, image in enumerate(images(n, side)):
        Image.fromarray(image).save(folder / f"{i}.JPEG")


def planes(pixels):
    """(n, h, w, 3) as rows of a red, a green and a blue plane."""
    return pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)


def shown(image_set, position=0):
    return image_set.images[position].permute(1, 2, 0).numpy()


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)


@pytest.fixture
def fetched(monkeypatch):
    """What torchvision was told to fetch, and where to."""
    calls = []
    for module in ("cifar", "stl10", "imagenette"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.download_and_extract_archive",
            lambda url, root, **options: calls.append((url.rsplit("/", 1)[1], Path(root))),
        )
    return calls


class TestCifar:
    def test_cifar10(self, tmp_path, unchecked):
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
            content = {"data": planes(images(4, 32, seed=i)), "labels": [0, 1, 2, 9]}
            (folder / name).write_bytes(pickle.dumps(content))
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))
        source = open_source(f"cifar10:{tmp_path}")
        assert source.train.images.shape == (20, 3, 32, 32)
        assert source.train.labels.tolist() == [0, 1, 2, 9] * 5
        assert len(source.test) == 4
        assert source.classes[9] == "class 9"
        assert np.array_equal(shown(source.train), images(4, 32)[0])
        assert np.array_equal(shown(source.test), images(4, 32, seed=5)[0])

    def test_cifar100(self, tmp_path, unchecked):
        folder = tmp_path / "cifar-100-python"
        folder.mkdir()
        for seed, name in enumerate(("train", "test")):
            content = {"data": planes(images(3, 32, seed)), "fine_labels": [99, 0, 7], "coarse_labels": [1, 1, 1]}
            (folder / name).write_bytes(pickle.dumps(content))
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {k}" for k in range(100)]}))
        source = open_source(f"cifar100:{tmp_path}")
        assert source.train.labels.tolist() == source.test.labels.tolist() == [99, 0, 7]
        assert source.num_classes == 100
        assert np.array_equal(shown(source.test, 2), images(3, 32, seed=1)[2])


class TestStl10:
    @pytest.fixture
    def root(self, tmp_path, monkeypatch):
        folder = tmp_path / "stl10_binary"
        folder.mkdir()
        for seed, (name, n) in enumerate((("unlabeled", 30), ("train", 5), ("test", 4))):
            # Each plane lies column by column.
            columns = images(n, 96, seed).transpose(0, 3, 2, 1)
            (folder / f"{name}_X.bin").write_bytes(columns.tobytes())
            if name != "unlabeled":
                (folder / f"{name}_y.bin").write_bytes(bytes([10, 1, 2, 3, 4][:n]))
        (folder / "class_names.txt").write_text("\n".join(f"class {k}" for k in range(10)))
        monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda path, md5: Path(path).is_file())
        return tmp_path

    def test_trains_on_the_unlabelled_and_evaluates_on_the_labelled(self, root):
        source = open_source(f"stl10:{root}")
        assert source.train.labels is None
        assert [len(part) for part in (source.train, source.bank, source.test)] == [30, 5, 4]
        assert source.bank.labels.tolist() == [9, 0, 1, 2, 3]
        assert source.test.labels.tolist() == [9, 0, 1, 2]
        assert source.labelled
        assert source.num_classes == 10
        assert source.labelled_train is source.bank
        for seed, part in enumerate((source.train, source.bank, source.test)):
            assert np.array_equal(shown(part, 3), images(len(part), 96, seed)[3])

    def test_agrees_with_torchvision(self, root):
        source = open_source(f"stl10:{root}")
        for split, part in (("unlabeled", source.train), ("train", source.bank), ("test", source.test)):
            theirs = datasets.STL10(str(root), split=split)
            assert all(np.array_equal(np.asarray(theirs[k][0]), shown(part, k)) for k in range(len(part)))

    def test_a_file_is_missing(self, root):
        (root / "stl10_binary" / "train_y.bin").unlink()
        with pytest.raises(UserError, match=r"no stl10_binary in torchvision's layout.*--data\.download"):
            open_source(f"stl10:{root}")


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "stl10", "imagenette"])
def test_what_is_not_there(tmp_path, kind, fetched):
    with pytest.raises(UserError, match=r"in torchvision's layout.*--data\.download"):
        open_source(f"{kind}:{tmp_path}")
    with pytest.raises(UserError, match=r"no such path.*--data\.download"):
        open_source(f"{kind}:{tmp_path / 'missing'}")
    assert not fetched


@pytest.mark.parametrize(
    ("kind", "archive"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("stl10", "stl10_binary.tar.gz"),
        ("imagenette", "imagenette2-320.tgz"),
    ],
)
def test_download_fetches(tmp_path, kind, archive, fetched):
    """Here nothing comes of it, so what was asked for is still not there."""
    with pytest.raises(UserError, match=f"{tmp_path / 'new'}"):
        open_source(f"{kind}:{tmp_path / 'new'}", download=True)
    assert fetched[0] == (archive, tmp_path / "new")


class TestImagenette:
    @pytest.mark.parametrize("inner", ["", "imagenette2", "imagenette2-160"])
    def test_read(self, tmp_path, inner):
        for part, n in (("train", 3), ("val", 2)):
            for wnid in ("n01440764", "n03888257"):
                write(tmp_path / inner / part / wnid, n)
        source = open_source(f"imagenette:{tmp_path}")
        assert source.classes == ["tench", "parachute"]
        assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert source.test.labels.tolist() == [0, 0, 1, 1]

    def test_what_is_there_is_not_fetched(self, tmp_path, fetched):
        for part in ("train", "val"):
            write(tmp_path / "imagenette2" / part / "n01440764", 1)
            write(tmp_path / "imagenette2" / part / "n03888257", 1)
        assert len(open_source(f"imagenette:{tmp_path}", download=True).train) == 2
        assert not fetched


class TestImagenet:
    @pytest.fixture
    def root(self, tmp_path):
        for part, n in (("train", 12), ("val", 2)):
            for wnid in ("n01440764", "n01443537"):
                write(tmp_path / part / wnid, n)
        return tmp_path

    def test_read(self, root):
        source = open_source(f"imagenet:{root}")
        assert isinstance(source.train, InMemory)
        assert (len(source.train), len(source.test)) == (24, 4)
        assert source.classes == ["n01440764", "n01443537"]
        assert source.test.labels.equal(torch.tensor([0, 0, 1, 1]))

    def test_validation_images_without_class_folders(self, root):
        for folder in (root / "val").iterdir():
            for file in folder.iterdir():
                file.rename(root / "val" / f"{folder.name}_{file.name}")
            folder.rmdir()
        with pytest.raises(UserError, match=r"val: holds no class folders.*valprep\.sh"):
            open_source(f"imagenet:{root}")

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_a_part_is_missing(self, root, part):
        (root / part).rename(root / "elsewhere")
        with pytest.raises(UserError, match=f"holds no {part}/"):
            open_source(f"imagenet:{root}")

    def test_other_classes(self, root):
        write(root / "train" / "cats", 1)
        with pytest.raises(UserError, match=f"cats is no WordNet id.*folder:{root} takes any names"):
            open_source(f"imagenet:{root}")
