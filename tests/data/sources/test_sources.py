"""Every spelling of a source, and what is told when there is nothing usable in it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import Encoded, Files, InMemory, Source, open_source
from moco.runtime.errors import UserError


def images(n, height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def write(folder, n, height=8, width=8, seed=0, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images(n, height, width, seed)):
        Image.fromarray(image).save(folder / f"{i:02}.{suffix}")


def first(image_set):
    return image_set.images[0].permute(1, 2, 0).numpy()


class TestFolder:
    def test_class_folders(self, tmp_path):
        for seed, name in enumerate(("cat", "ant", "bee")):
            write(tmp_path / name, 10, seed=seed)
        source = open_source(f"folder:{tmp_path}")
        assert source.classes == ["ant", "bee", "cat"]
        assert source.labelled
        assert source.num_classes == 3
        assert isinstance(source.train, InMemory)
        assert (len(source.train), len(source.test)) == (27, 3)
        assert source.train.labels.tolist() == [0] * 9 + [1] * 9 + [2] * 9
        assert source.test.labels.tolist() == [0, 1, 2]
        assert np.array_equal(first(source.train), images(10, seed=1)[0])
        assert np.array_equal(first(source.test), images(10, seed=1)[9])

    @pytest.mark.parametrize("nested", ["", "only"])
    def test_without_classes(self, tmp_path, nested):
        write(tmp_path / nested, 25)
        source = open_source(f"folder:{tmp_path}")
        assert source.classes is None
        assert source.test is None
        assert source.train.labels is None
        assert not source.labelled
        assert len(source.train) == 25

    @pytest.mark.parametrize("name", ["test", "val", "validation"])
    def test_train_and_test_folders(self, tmp_path, name):
        for part, seed in (("train", 0), (name, 5)):
            write(tmp_path / part / "dog", 3, seed=seed)
            write(tmp_path / part / "deep" / "er", 2, seed=seed + 1)
        source = open_source(f"folder:{tmp_path}")
        assert source.classes == ["deep", "dog"]
        assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 1, 1, 1]
        assert np.array_equal(first(source.test), images(2, seed=6)[0])

    def test_test_set_may_lack_a_class_but_not_add_one(self, tmp_path):
        for part in ("train/a", "train/b", "train/c", "test/a", "test/c"):
            write(tmp_path / part, 1)
        assert open_source(f"folder:{tmp_path}").test.labels.tolist() == [0, 2]
        write(tmp_path / "test" / "z", 1)
        with pytest.raises(UserError, match="not among the training images': z"):
            open_source(f"folder:{tmp_path}")

    def test_uppercase_suffix_and_other_files(self, tmp_path):
        write(tmp_path, 2, suffix="PNG")
        write(tmp_path, 3, suffix="JPEG")
        (tmp_path / "notes.txt").write_text("no image")
        assert len(open_source(f"folder:{tmp_path}").train) == 5

    def test_several_sizes_stay_on_disk(self, tmp_path):
        write(tmp_path / "a", 12)
        write(tmp_path / "b", 12, width=9)
        source = open_source(f"folder:{tmp_path}", max_bad=0.25)
        assert isinstance(source.train, Encoded)
        assert isinstance(source.test, Encoded)
        assert source.train.max_bad == 0.25
        assert [Path(source.test.name(i)).name for i in range(2)] == ["09.png", "07.png"]
        assert source.test.labels.tolist() == [0, 1]

    def test_more_than_fits_stays_on_disk(self, tmp_path):
        write(tmp_path, 3)
        assert isinstance(open_source(f"folder:{tmp_path}", cache_mb=0).train, Encoded)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"no images here.*\.jpg"):
            open_source(f"folder:{tmp_path}")

    def test_a_file_is_no_folder(self, tmp_path):
        write(tmp_path, 1)
        with pytest.raises(UserError, match="takes a folder"):
            open_source(f"folder:{tmp_path / '00.png'}")

    def test_too_many_bad_images(self, tmp_path):
        write(tmp_path, 20)
        (tmp_path / "00.png").write_bytes(b"broken")
        with pytest.raises(UserError, match=r"1 of 20 images.*00\.png"):
            open_source(f"folder:{tmp_path}")
        assert len(open_source(f"folder:{tmp_path}", max_bad=0.1).train) == 19


class TestNpz:
    def test_one_file(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=images(30, 5, 7), labels=np.arange(30, dtype=np.uint8) % 4)
        source = open_source(f"npz:{tmp_path / 'a.npz'}")
        assert source.train.images.shape == (27, 3, 5, 7)
        assert source.train.labels.dtype == torch.int64
        assert source.num_classes == 4
        assert source.test.labels.tolist() == [1, 3, 1]
        assert np.array_equal(first(source.test), images(30, 5, 7)[9])

    def test_folder_of_two(self, tmp_path):
        np.savez_compressed(tmp_path / "train.npz", images=images(4), labels=np.arange(4))
        np.savez_compressed(tmp_path / "test.npz", images=images(2, seed=1), labels=np.arange(2))
        source = open_source(f"npz:{tmp_path}")
        assert (len(source.train), len(source.test)) == (4, 2)
        assert np.array_equal(first(source.test), images(2, seed=1)[0])

    def test_without_labels(self, tmp_path):
        np.savez(tmp_path / "train.npz", images=images(40))
        source = open_source(f"npz:{tmp_path}")
        assert source.test is None
        assert not source.labelled
        assert len(source.train) == 40

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"pictures": images(2)}, 'no array "images"'),
            ({"images": images(2).astype(np.float32)}, "uint8.*not float32"),
            ({"images": images(2)[..., 0]}, r"not uint8 \(2, 8, 8\)"),
            ({"images": images(2).transpose(0, 3, 1, 2)}, r"not uint8 \(2, 3, 8, 8\)"),
            ({"images": images(2), "labels": np.arange(3)}, r"2 images but labels of shape \(3,\)"),
            ({"images": images(2), "labels": np.zeros((2, 1))}, r"labels of shape \(2, 1\)"),
            ({"images": images(2), "labels": np.array(["cat", "dog"])}, "cannot be read"),
            ({"images": np.array([{}, {}], dtype=object)}, "cannot be read"),
            ({"images": images(0)}, "no training images"),
        ],
    )
    def test_wrong_arrays(self, tmp_path, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UserError, match=message):
            open_source(f"npz:{tmp_path / 'a.npz'}")

    @pytest.mark.parametrize("damage", ["text", "empty", "cut", "flipped", "npy"])
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_damaged(self, tmp_path, damage, save):
        path = tmp_path / "a.npz"
        save(path, images=images(40) & 3)
        whole = path.read_bytes()
        flipped = bytearray(whole)
        for i in range(300, 2300):
            flipped[i] ^= 0xFF
        np.save(tmp_path / "a.npy", images(2))
        npy = (tmp_path / "a.npy").read_bytes()
        path.write_bytes({"text": b"hello", "empty": b"", "cut": whole[:2000], "flipped": flipped, "npy": npy}[damage])
        with pytest.raises(UserError, match=r"a\.npz: cannot be read"):
            open_source(f"npz:{path}")

    def test_folder_without_train(self, tmp_path):
        with pytest.raises(UserError, match=r"no train\.npz"):
            open_source(f"npz:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder", "a path is missing: folder:PATH"),
        ("npz:", "a path is missing"),
        ("folder:/no/such/place", "no such path: /no/such/place"),
        ("foldr:/tmp", "did you mean folder"),
        ("cifar:/tmp", "did you mean cifar10"),
        ("shape", "did you mean shapes"),
        ("", "no such source \\(there are shapes, cifar10:PATH"),
        ("zzzz:/tmp", "no such source \\(there are .* shards:PATTERN, hf:NAME"),
        ("cifar100", "a path is missing: cifar100:PATH"),
        ("hf", "a name is missing: hf:NAME"),
        ("shards:", "a pattern is missing: shards:PATTERN"),
        ("imagenet:/no/such/place", "no such path: /no/such/place$"),
        ("imagenete:/tmp", "did you mean imagenette"),
    ],
)
def test_misspelt(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec)


def test_shapes(monkeypatch):
    monkeypatch.setattr("moco.data.sources.npz.SHAPES_TRAIN", 30)
    monkeypatch.setattr("moco.data.sources.npz.SHAPES_TEST", 10)
    source = open_source("shapes", size=16)
    assert source.train.images.shape == (30, 3, 16, 16)
    assert source.test.images.shape == (10, 3, 16, 16)
    assert source.num_classes == 10
    assert source.labelled


def test_a_small_labelled_set_is_not_split(tmp_path):
    np.savez(tmp_path / "a.npz", images=images(19), labels=np.arange(19) % 2)
    source = open_source(f"npz:{tmp_path / 'a.npz'}")
    assert source.test is None
    assert not source.labelled


class TestBank:
    """Labelled training images that are others than those trained on."""

    def test_it_is_what_evaluation_uses(self):
        pixels = torch.zeros(30, 3, 2, 2, dtype=torch.uint8)
        bank, test = (InMemory(pixels[:n], torch.arange(n) % 3) for n in (5, 4))
        source = Source(InMemory(pixels), test, None, bank)
        assert source.labelled
        assert source.num_classes == 3
        assert source.labelled_train is bank
        assert len(source.train) == 30
        assert not Source(InMemory(pixels), test, None).labelled

    def test_without_one_the_training_images_are(self):
        train = InMemory(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 5]))
        source = Source(train, train, None)
        assert source.labelled_train is train
        assert source.num_classes == 6


class TestShards:
    """`moco.data.sources.shards` has tests of its own; here: what becomes of what it opens."""

    @dataclass
    class Reader(Files):
        paths: list
        given: torch.Tensor | None
        remote: bool = False

        def __post_init__(self):
            super().__init__(self.paths)

        def labels(self):
            return self.given

    @pytest.fixture
    def opened(self, tmp_path, monkeypatch):
        """Opens shards of 30 images, local or remote."""
        write(tmp_path, 30)
        paths = sorted(tmp_path.iterdir())

        def opened(expected, remote, labels=None, test=True, **options):
            def open_shards(spec):
                assert spec == expected
                train, other = (self.Reader(paths[:n], labels, remote) for n in (30, 30))
                return train, other if test else None, ["a", "b"], None

            monkeypatch.setattr("moco.data.sources.shards.open_shards", open_shards)
            return open_source(f"shards:{expected}", **options)

        return opened

    def test_near_they_come_into_memory_where_they_fit(self, opened):
        source = opened("/some/*.tar", remote=False, labels=torch.arange(30) % 2)
        assert isinstance(source.train, InMemory)
        assert isinstance(source.test, InMemory)
        assert (len(source.train), source.classes, source.labelled) == (30, ["a", "b"], True)
        assert isinstance(opened("/some/*.tar", remote=False, cache_mb=0).train, Encoded)

    def test_far_away_they_are_not_read_before_they_are_asked_for(self, opened, monkeypatch):
        monkeypatch.setattr(self.Reader, "read", lambda *arguments: pytest.fail("was read"))
        source = opened("https://host:80/{00..09}.tar", remote=True, test=False, max_bad=0.5)
        assert isinstance(source.train, Encoded)
        assert (source.test, source.train.max_bad, source.labelled) == (None, 0.5, False)

    @pytest.mark.parametrize("remote", [True, False])
    def test_far_away_no_images_are_kept_from_training(self, opened, remote):
        source = opened("s", remote=remote, labels=torch.arange(30) % 2, test=False)
        assert (len(source.train), source.labelled) == ((30, False) if remote else (27, True))
