"""Packing: nothing lost, nothing changed that need not be, and continued where it stopped."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import Encoded, Files, InMemory, open_source
from moco.data.formats.pack import check, pack
from moco.data.formats.shard_writer import write_shard
from moco.data.sources.shards import open_shards
from moco.data.sources.source import Source
from moco.runtime.errors import UserError


def picture(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def files(folder, count=7, bad=(), **options):
    paths = []
    for i in range(count):
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(picture(i)).save(paths[i], quality=80, **options)
        if i in bad:
            paths[i].write_bytes(b"<html>")
    return Encoded(Files(paths), torch.arange(count) % 2, max_bad=1)


def decoded(data):
    return np.array(Image.open(io.BytesIO(data)))


def everything(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_bytes_are_kept(tmp_path):
    images = files(tmp_path)
    pack(Source(images, None, ["a", "b"]), tmp_path / "out", images_per_shard=3, workers=0)
    shards, test, classes, _ = open_shards(str(tmp_path / "out"))
    assert [shards.read(i) for i in range(7)] == [images.read(i) for i in range(7)]
    assert shards.labels().tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert (test, classes) == (None, ["a", "b"])
    assert sorted(everything(tmp_path / "out")) == [
        "manifest.json",
        *(f"train-{i:06}.{suffix}" for i in range(3) for suffix in ("idx", "tar")),
    ]


def test_pixels_are_kept(tmp_path):
    pixels = torch.from_numpy(np.stack([picture(i, 8, 8) for i in range(4)])).permute(0, 3, 1, 2).contiguous()
    pack(Source(InMemory(pixels), InMemory(pixels[:1]), None), tmp_path / "out", workers=0)
    train, test, *_ = open_shards(str(tmp_path / "out"))
    assert all(np.array_equal(decoded(train.read(i)), picture(i, 8, 8)) for i in range(4))
    assert len(test) == 1
    assert train.labels() is None


@pytest.mark.parametrize(("format", "kind"), [("keep", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_resizing_the_shorter_side(tmp_path, format, kind):
    pack(Source(files(tmp_path), None, None), tmp_path / "out", size=10, format=format, workers=0)
    shards, *_ = open_shards(str(tmp_path / "out"))
    image = Image.open(io.BytesIO(shards.read(0)))
    assert (image.size, image.format) == ((15, 10), kind)


def test_small_images_stay_as_they_are(tmp_path):
    images = files(tmp_path)
    pack(Source(images, None, None), tmp_path / "out", size=20, workers=0)
    assert open_shards(str(tmp_path / "out"))[0].read(3) == images.read(3)


def test_quality(tmp_path):
    for quality in (20, 95):
        pack(Source(files(tmp_path), None, None), tmp_path / f"{quality}", format="jpeg", quality=quality, workers=0)
    low, high = ((tmp_path / name / "train-000000.tar").stat().st_size for name in ("20", "95"))
    assert low < high


def test_resized_images_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pack(Source(files(tmp_path, exif=exif), None, None), tmp_path / "out", size=10, workers=0)
    assert Image.open(io.BytesIO(open_shards(str(tmp_path / "out"))[0].read(0))).size == (10, 15)


def test_unreadable_images_are_left_out_and_named(tmp_path, logged):
    images = files(tmp_path, bad=[2, 3])
    packed = pack(Source(images, None, None), tmp_path / "out", images_per_shard=2, workers=0, max_bad=0.5)
    shards, *_ = open_shards(str(tmp_path / "out"))
    assert [shards.read(i) for i in range(5)] == [images.read(i) for i in (0, 1, 4, 5, 6)]
    assert shards.counts.tolist() == [2, 2, 1]
    assert sorted(record.getMessage().split(".jpg")[0][-1] for record in logged.records) == ["2", "3"]
    assert len(packed.manifest["skipped"]) == 2
    assert "5 images in 3 shards" in str(packed)
    assert "2 that cannot be read were left out" in str(packed)


def test_too_many_unreadable_images(tmp_path, logged):
    with pytest.raises(UserError, match=r"1 of 7 images cannot be read, more than --max-bad 0\.01: .*2\.jpg"):
        pack(Source(files(tmp_path, bad=[2]), None, None), tmp_path / "out", workers=0)


def stopped(source, out, monkeypatch, after=2, **options):
    """Packs so many shards of two images, and is stopped in the midst of the next."""
    left = iter(range(after))

    def write(job, images, packing):
        if next(left, None) is None:
            job.path.write_bytes(b"half")
            raise KeyboardInterrupt
        return write_shard(job, images, packing)

    with monkeypatch.context() as patch:
        patch.setattr("moco.data.formats.pack.write_shard", write)
        with pytest.raises(KeyboardInterrupt):
            pack(source, out, images_per_shard=2, workers=0, max_bad=0.5, **options)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_packing_goes_on_with_any_number_of_workers(tmp_path, monkeypatch, workers):
    source, out = Source(files(tmp_path, bad=[1]), None, None), tmp_path / "out"
    pack(source, tmp_path / "undisturbed", images_per_shard=2, workers=0, max_bad=0.5)
    stopped(source, out, monkeypatch)
    before = (out / "train-000000.tar").stat().st_mtime_ns
    packed = pack(source, out, images_per_shard=2, workers=workers, max_bad=0.5)
    assert everything(out) == everything(tmp_path / "undisturbed")
    assert (out / "train-000000.tar").stat().st_mtime_ns == before
    assert len(packed.manifest["skipped"]) == 1


def test_what_kept_shards_left_out_counts(tmp_path, monkeypatch):
    source, out = Source(files(tmp_path, bad=[1, 6]), None, None), tmp_path / "out"
    stopped(source, out, monkeypatch)
    with pytest.raises(UserError, match="2 of 7 images cannot be read"):
        pack(source, out, images_per_shard=2, workers=0, max_bad=0.2)


def another_set(folder, changed):
    """A set with the same counts, names and labels as `files`, one image of which is another."""
    folder.mkdir()
    images = files(folder)
    Image.fromarray(picture(99)).save(folder / f"{changed}.jpg")
    return Source(images, None, None)


@pytest.mark.parametrize("changed", [0, 3])
def test_another_set_with_the_same_counts_keeps_no_shard_and_spoils_none(tmp_path, monkeypatch, changed):
    one, out = Source(files(tmp_path), None, None), tmp_path / "out"
    stopped(one, out, monkeypatch)
    before = everything(out)
    with pytest.raises(UserError, match=rf"out.train-00000{changed // 2}\.tar was packed from other images"):
        pack(another_set(tmp_path / "other", changed), out, images_per_shard=2, workers=0, max_bad=0.5)
    assert everything(out) == before
    pack(one, out, images_per_shard=2, workers=0, max_bad=0.5)
    assert [open_shards(str(out))[0].read(i) for i in range(7)] == [one.train.read(i) for i in range(7)]


def test_another_set_in_the_folder_of_a_finished_one(tmp_path):
    one, out = Source(files(tmp_path), None, None), tmp_path / "out"
    pack(one, out, workers=0)
    before = everything(out)
    with pytest.raises(UserError, match="out holds shards of other images, though as many"):
        pack(another_set(tmp_path / "other", 6), out, workers=0)
    assert everything(out) == before


def test_the_same_images_in_another_place_are_the_same_set(tmp_path):
    (tmp_path / "other").mkdir()
    first = pack(Source(files(tmp_path), None, None), tmp_path / "out", workers=0)
    assert pack(Source(files(tmp_path / "other"), None, None), tmp_path / "out", workers=0) == first


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("other", [([1, 1, 1, 0, 0, 0, 0], ["a", "b"]), ([0, 1, 0, 1, 0, 1, 0], ["b", "a"])])
def test_other_labels_or_classes_are_another_set(tmp_path, monkeypatch, other, finished):
    images, out = files(tmp_path), tmp_path / "out"
    one = Source(images, None, ["a", "b"])
    if finished:
        pack(one, out, images_per_shard=2, workers=0, max_bad=0.5)
    else:
        stopped(one, out, monkeypatch)
    labels, classes = other
    with pytest.raises(UserError, match=r"holds shards of other images|was begun there"):
        pack(Source(replace(images, labels=torch.tensor(labels)), None, classes), out, images_per_shard=2, workers=0)


def test_pixels_have_an_identity_too(tmp_path):
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    pack(Source(InMemory(pixels), None, None), tmp_path / "out", workers=0)
    for other in (255 - pixels, pixels.view(2, 3, 2, 8)):
        with pytest.raises(UserError, match="shards of other images"):
            pack(Source(InMemory(other), None, None), tmp_path / "out", workers=0)


@pytest.mark.parametrize("damage", ["train-000000.tar", "train-000000.idx", "train-000000.json"])
def test_a_damaged_shard_of_a_stopped_packing_is_packed_again(tmp_path, monkeypatch, damage):
    source, out = Source(files(tmp_path), None, None), tmp_path / "out"
    stopped(source, out, monkeypatch)
    (out / damage).unlink() if damage.endswith("idx") else (out / damage).write_bytes(b"x")
    pack(source, out, images_per_shard=2, workers=0)
    assert check(out) == []
    assert [open_shards(str(out))[0].read(i) for i in range(7)] == [source.train.read(i) for i in range(7)]


def test_a_finished_folder_that_lost_a_shard_is_not_packed_already(tmp_path):
    source, out = Source(files(tmp_path), None, None), tmp_path / "out"
    pack(source, out, workers=0)
    (out / "train-000000.tar").unlink()
    with pytest.raises(UserError, match=r"train-000000\.tar: is not there: choose another folder"):
        pack(source, out, workers=0)


def test_unlabelled_training_images_keep_their_labelled_bank(tmp_path):
    """As STL-10 has them."""
    pixels = torch.from_numpy(np.stack([picture(i, 8, 8) for i in range(9)])).permute(0, 3, 1, 2).contiguous()
    bank, test = InMemory(pixels[4:7], torch.tensor([2, 0, 1])), InMemory(pixels[7:], torch.tensor([1, 2]))
    source = Source(InMemory(pixels[:4]), test, ["x", "y", "z"], bank)
    pack(source, tmp_path / "out", images_per_shard=2, workers=0)
    opened = open_source(f"shards:{tmp_path / 'out'}")
    assert opened.labelled
    assert (opened.train.labels, opened.classes, opened.num_classes) == (None, ["x", "y", "z"], 3)
    assert opened.labelled_train.labels.tolist() == [2, 0, 1]
    assert opened.test.labels.tolist() == [1, 2]
    for name in ("train", "bank", "test"):
        assert torch.equal(getattr(opened, name).images, getattr(source, name).images)


def test_no_training_image_that_can_be_read(tmp_path):
    with pytest.raises(UserError, match="none of the training images can be read"):
        pack(Source(files(tmp_path, 2, bad=[0, 1]), None, None), tmp_path / "out", workers=0, max_bad=1)


def test_packing_twice_does_nothing(tmp_path):
    source, out = Source(files(tmp_path), None, None), tmp_path / "out"
    first = pack(source, out, workers=0)
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert pack(source, out, workers=0) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == stamps


def test_other_options_are_refused(tmp_path):
    source, out = Source(files(tmp_path), None, None), tmp_path / "out"
    pack(source, out, workers=0)
    with pytest.raises(UserError, match="packed with other options"):
        pack(source, out, size=8, workers=0)


def test_other_options_than_those_begun_with_are_refused(tmp_path, monkeypatch):
    source, out = Source(files(tmp_path), None, None), tmp_path / "out"
    stopped(source, out, monkeypatch)
    with pytest.raises(UserError, match="was begun there"):
        pack(source, out, workers=0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not empty"):
        pack(Source(files(tmp_path), None, None), tmp_path, workers=0)


def test_check(tmp_path):
    out = tmp_path / "out"
    pack(Source(files(tmp_path), None, None), out, images_per_shard=3, workers=0)
    assert check(out) == []
    (out / "train-000001.tar").write_bytes(b"x")
    (out / "train-000002.tar").unlink()
    assert [line.split("train-")[1] for line in check(out)] == [
        "000001.tar: is not what was packed",
        "000002.tar: is not there",
    ]
