"""Shards: found by any spelling, read by offset or as streams, here or at a URL; damaged ones end in words."""

import io
import json
import os
import pickle
import tarfile
from contextlib import suppress

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moco.data import Encoded, Files, open_source
from moco.data.formats.decode import UnreadableImageError
from moco.data.formats.pack import pack
from moco.data.formats.tar import INDEX
from moco.data.sources.shards import Shards, UnreadableShardError, expand_braces, open_shards
from moco.data.sources.source import Source
from moco.runtime.errors import UserError


def as_png(number, size=(12, 10)):
    data = io.BytesIO()
    picture = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


def write_tar(path, content):
    """A tar of (name, bytes) as any program writes it."""
    with tarfile.open(path, "w") as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder, counts, labels=True):
    folder.mkdir(exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        content = []
        for _ in range(count):
            content += [(f"{number:05}.png", as_png(number)), (f"{number:05}.json", b"{}")]
            content += [(f"{number:05}.cls", b"%d" % (number % 3))] if labels else []
            number += 1
        write_tar(folder / f"{shard:03}.tar", content)
    return folder


def contents(shards):
    return [shards.read(i) for i in range(len(shards))]


EXPECTED = [as_png(i) for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "web", [3, 0, 4])


@pytest.fixture
def packed(tmp_path):
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        paths[i].write_bytes(as_png(i))
    images = Encoded(Files(paths), torch.arange(7) % 3)
    pack(
        Source(images, images.subset(torch.arange(2)), ["a", "b", "c"]), tmp_path / "out", images_per_shard=3, workers=0
    )
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{0000..0000}", ["x0000"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("spelling", ["", "/*.tar", "/{000..002}.tar", "/00?.tar", "/{000,001,002}.tar"])
def test_spellings(folder, spelling):
    shards, test, classes, _ = open_shards(f"{folder}{spelling}")
    assert contents(shards) == EXPECTED
    assert shards.counts.tolist() == [3, 0, 4]
    assert (test, classes, shards.remote) == (None, None, False)
    assert shards.labels().tolist() == [i % 3 for i in range(7)]


def test_without_labels(tmp_path):
    assert open_shards(str(write_shards(tmp_path / "web", [2], labels=False)))[0].labels() is None


def test_what_moco_pack_writes(packed):
    train, test, classes, _ = open_shards(str(packed))
    assert contents(train) == EXPECTED
    assert contents(test) == EXPECTED[:2]
    assert train.counts.tolist() == [3, 3, 1]
    assert train.labels().tolist() == [i % 3 for i in range(7)]
    assert classes == ["a", "b", "c"]


def test_where_and_names(folder):
    shards, *_ = open_shards(str(folder))
    assert [shards.where(i) for i in (0, 2, 3, 6)] == [(0, 0), (0, 2), (2, 0), (2, 3)]
    assert shards.name(4) == f"{folder}/002.tar: image 1"


def test_a_shard_that_is_replaced_has_another_version(folder):
    before, _, _, _ = open_shards(str(folder))
    first, last = before.version(0), before.version(len(before) - 1)
    assert before.version(1) == first
    os.utime(before.urls[0], ns=(1, 1))
    after, _, _, _ = open_shards(str(folder))
    assert after.version(0) != first
    assert after.version(len(before) - 1) == last


def test_streams_give_the_same(folder, packed):
    for path in (folder, packed):
        shards, *_ = open_shards(str(path))
        streamed = [pair for shard in range(len(shards.urls)) for pair in shards.stream(shard)]
        assert [data for _, data in streamed] == EXPECTED
        assert [int(shards.starts[s]) + n for s in range(len(shards.urls)) for n, _ in shards.stream(s)] == list(
            range(7)
        )


def test_they_travel_to_other_processes(folder):
    shards, *_ = open_shards(str(folder))
    shards.read(0)
    assert contents(pickle.loads(pickle.dumps(shards))) == EXPECTED


def test_few_shards_are_open_at_once(tmp_path):
    shards, *_ = open_shards(str(write_shards(tmp_path / "web", [1] * 80)))
    assert len(contents(shards)) == 80
    assert len(shards._maps) <= 64


def test_webdataset_reads_them(packed):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset([str(one) for one in sorted(packed.glob("train-*.tar"))], shardshuffle=False))
    assert [sample["png"] for sample in samples] == EXPECTED
    assert [int(sample["cls"]) for sample in samples] == [i % 3 for i in range(7)]


# At URLs


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def upload(files, folder, names="*"):
    for path in sorted(folder.glob(names)):
        files.pipe(f"/bucket/{path.name}", path.read_bytes())


@pytest.mark.parametrize("spelling", ["memory://bucket", "memory://bucket/{000..002}.tar", "memory://bucket/*.tar"])
def test_at_a_url(memory, folder, spelling):
    upload(memory, folder)
    shards, *_ = open_shards(spelling)
    assert shards.remote
    assert contents(shards) == EXPECTED
    assert [data for shard in range(3) for _, data in shards.stream(shard)] == EXPECTED


def test_packed_at_a_url(memory, packed):
    upload(memory, packed)
    train, test, classes, _ = open_shards("memory://bucket")
    assert (contents(train), contents(test), classes) == (EXPECTED, EXPECTED[:2], ["a", "b", "c"])
    assert train.labels().tolist() == [i % 3 for i in range(7)]


def test_counts_come_from_what_lies_beside(memory, packed, monkeypatch):
    monkeypatch.setattr("moco.data.sources.shard_index.scan", lambda url: pytest.fail("was scanned"))
    upload(memory, packed, "train-*")
    assert contents(open_shards("memory://bucket/*.tar")[0]) == EXPECTED
    for path in packed.glob("train-*.idx"):
        memory.rm(f"/bucket/{path.name}")
    for number, count in enumerate((3, 3, 1)):
        memory.pipe(f"/bucket/train-{number:06}_stats.json", json.dumps({"successes": count}).encode())
    assert open_shards("memory://bucket/*.tar")[0].counts.tolist() == [3, 3, 1]


def test_a_stream_of_a_shard_that_disappears_ends_in_words(folder):
    shards, *_ = open_shards(str(folder))
    (folder / "002.tar").unlink()
    with pytest.raises(UnreadableShardError, match=r"002\.tar: No such file"):
        list(shards.stream(2))


def test_a_package_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"nosuch://x.*[Pp]rotocol"):
        open_shards("nosuch://x/*.tar")


# What is damaged


def test_nothing_there(tmp_path):
    for spec in (tmp_path, tmp_path / "x.tar", tmp_path / "*.tar"):
        with pytest.raises(UserError, match=r"no \.tar files there"):
            open_shards(str(spec))


def test_no_images_in_them(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(UserError, match="no images in 1 shards"):
        open_shards(str(tmp_path))


def test_compressed_ones_are_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.tar\.gz: is compressed.*unpack"):
        open_shards(str(tmp_path / "a.tar.gz"))


def test_a_tar_that_is_cut_off(folder, logged):
    tar = folder / "002.tar"
    tar.write_bytes(tar.read_bytes()[:7000])
    shards, *_ = open_shards(str(folder))
    assert 3 < len(shards) < 7
    assert contents(shards) == EXPECTED[: len(shards)]
    assert [r.getMessage() for r in logged.records if "cut off" in r.getMessage()]


def test_a_tar_that_is_cut_off_after_it_was_indexed(packed):
    shards, *_ = open_shards(str(packed))
    tar = packed / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:1800])
    assert shards.read(0) == EXPECTED[0]
    with pytest.raises(UnreadableImageError, match=r"train-000000\.tar: image 2: the shard ends before it"):
        shards.read(2)


def test_one_that_is_no_tar(folder, logged):
    (folder / "001.tar").write_bytes(b"<html>404</html>" * 100)
    shards, *_ = open_shards(str(folder))
    assert contents(shards) == EXPECTED
    assert any("001.tar: is not a tar" in record.getMessage() for record in logged.records)


def test_a_shard_that_disappears(folder):
    shards, *_ = open_shards(str(folder))
    (folder / "002.tar").unlink()
    with pytest.raises(UnreadableImageError, match=r"002\.tar: image 0: No such file"):
        shards.read(3)


@pytest.mark.parametrize("damage", ["older", "garbage", "too far"])
def test_an_index_that_does_not_fit_is_made_anew(packed, damage):
    (packed / "manifest.json").unlink()
    index = packed / "train-000001.idx"
    if damage == "older":
        np.save(index.open("wb"), np.zeros(1, INDEX))
        os.utime(index, (0, 0))
    elif damage == "garbage":
        index.write_bytes(b"garbage")
    else:
        np.save(index.open("wb"), np.array([(10**9, 10, 0)], INDEX))
    assert contents(open_shards(str(packed / "train-*.tar"))[0]) == EXPECTED


def test_members_of_any_name_and_kind(tmp_path, monkeypatch):
    names = [
        "../../up.png",
        "/etc/absolute.png",
        "twice.png",
        "twice.png",
        "a/b.c/d.seg.png",
        "ü.PNG",
        "x" * 200 + ".png",
    ]
    tar = write_tar(tmp_path / "a.tar", [(name, as_png(i)) for i, name in enumerate(names)])
    with tarfile.open(tar, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "twice.png"
            archive.addfile(info)
    shards, *_ = open_shards(str(tar))
    # d.seg.png is no image but something of the image d: so says the convention.
    assert contents(shards) == [as_png(i) for i in (0, 1, 2, 3, 5, 6)]
    assert [data for _, data in shards.stream(0)] == contents(shards)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_labels_that_are_none(tmp_path):
    content = [("0.png", as_png(0)), ("0.cls", b"2\n"), ("1.png", as_png(1)), ("1.cls", b"cat"), ("2.png", as_png(2))]
    assert open_shards(str(write_tar(tmp_path / "a.tar", content)))[0].labels().tolist() == [2, -1, -1]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_tars_end_in_words(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    tar = write_tar(folder / "a.tar", [(f"{i}.png", as_png(i)) for i in range(4)])
    content = bytearray(tar.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    tar.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        shards, *_ = open_shards(str(tar))
    except UserError:
        return
    for i in range(len(shards)):
        with suppress(UnreadableImageError):
            assert isinstance(shards.read(i), bytes)


def test_as_a_source(folder, packed):
    source = open_source(f"shards:{packed}")
    assert len(source.train) == 7
    assert len(source.test) == 2
    assert source.labelled
    spec = f"shards:{folder}"
    assert isinstance(open_source(spec, cache_mb=0).train.reader, Shards)
