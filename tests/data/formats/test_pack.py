"""Packing: nothing lost, nothing changed that need not be, and continued where it stopped."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import Encoded, Files, InMemory
from moco.data.formats.pack import check, pack
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


def test_the_same_bytes_from_any_number_of_workers(tmp_path):
    source = Source(files(tmp_path, bad=[2]), None, None)
    for workers in (0, 2):
        pack(source, tmp_path / f"{workers}", images_per_shard=2, workers=workers, max_bad=0.5)
    assert everything(tmp_path / "0") == everything(tmp_path / "2")


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


def test_a_stopped_packing_goes_on(tmp_path):
    source, out = Source(files(tmp_path, bad=[1]), None, None), tmp_path / "out"
    pack(source, out, images_per_shard=2, workers=0, max_bad=0.5)
    expected = everything(out)
    begun = json.dumps(json.loads(expected["manifest.json"])["options"])
    # As it is when the third of four shards was being written: its tar is there, its index is not.
    for name in ("manifest.json", "train-000002.idx", "train-000003.idx", "train-000003.tar"):
        (out / name).unlink()
    (out / "packing.json").write_text(begun)
    (out / "train-000002.tar").write_bytes(b"half")
    before = (out / "train-000000.tar").stat().st_mtime_ns
    pack(source, out, images_per_shard=2, workers=0, max_bad=0.5)
    assert everything(out) == expected
    assert (out / "train-000000.tar").stat().st_mtime_ns == before


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
    (out / "manifest.json").rename(out / "packing.json")
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
