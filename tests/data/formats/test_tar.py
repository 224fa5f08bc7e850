"""Samples of a tar: members by key, in any order, with the label that stands beside the image."""

import io
import json
import tarfile

import pytest

from moco.data.formats.tar import CutOffError, members


def tar_of(*content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def labels(*content):
    return [(one.name, one.label) for one in members(tar_of(*content))]


@pytest.mark.parametrize("image_first", [True, False])
def test_a_label_before_or_after_its_image(image_first):
    one, two = [("a.jpg", b"A"), ("a.cls", b"1")], [("b.jpg", b"B"), ("b.cls", b"2")]
    order = slice(None, None, 1 if image_first else -1)
    assert labels(*one[order], *two[order]) == [("a.jpg", 1), ("b.jpg", 2)]


def test_a_label_belongs_to_its_own_key():
    assert labels(("a.cls", b"1"), ("b.jpg", b"B"), ("c.jpg", b"C"), ("d.cls", b"4")) == [("b.jpg", -1), ("c.jpg", -1)]


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ({"label": 3}, 3),
        ({"cls": 4, "caption": "a cat"}, 4),
        ({"label": "cat", "cls": 5}, 5),
        ({"label": 1.0}, -1),
        ({"label": True}, -1),
        ({"label": -2}, -1),
        ({"label": 2**31}, -1),
        ([3], -1),
    ],
)
def test_the_label_of_a_json(content, label):
    beside = json.dumps(content).encode()
    assert labels(("a.jpg", b"A"), ("a.json", beside), ("a.txt", b"7")) == [("a.jpg", label)]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"label": 3}' + b" " * (1 << 20)])
def test_a_json_that_is_none_is_no_label(content):
    assert labels(("a.json", content), ("a.jpg", b"A")) == [("a.jpg", -1)]


@pytest.mark.parametrize("json_first", [True, False])
def test_cls_comes_before_json(json_first):
    beside = [("a.json", b'{"label": 8}'), ("a.cls", b"1")][:: 1 if json_first else -1]
    assert labels(*beside, ("a.jpg", b"A")) == [("a.jpg", 1)]


def test_a_key_that_comes_twice_is_two_samples():
    assert labels(("a.cls", b"1"), ("a.jpg", b"A"), ("a.cls", b"2"), ("a.jpg", b"B")) == [("a.jpg", 1), ("a.jpg", 2)]


def test_what_is_whole_comes_before_the_cut():
    file = tar_of(("a.cls", b"1"), ("a.jpg", b"A"), ("b.cls", b"2"), ("b.jpg", b"B" * 5000))
    file.truncate(4 * 512 + 3 * 512 + 1000)
    found = members(file)
    assert next(found)[0::3] == ("a.jpg", 1)
    with pytest.raises(CutOffError):
        next(found)


def test_no_tar():
    with pytest.raises(tarfile.ReadError):
        list(members(io.BytesIO(b"<html>404</html>" * 100)))


def test_what_webdataset_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(3):
            writer.write({"__key__": f"{i:03}", "jpg": b"\xff\xd8", "cls": i, "json": {"width": 3}, "txt": "a cat"})
    with tarfile.open(path) as archive:  # the defect: the writer sorts
        assert archive.getnames()[:2] == ["000.cls", "000.jpg"]
    with path.open("rb") as file:
        assert [one.label for one in members(file)] == [0, 1, 2]


def test_img2datasets_layout():
    content = [(f"{i:09}.{suffix}", data) for i in range(2) for suffix, data in IMG2DATASET]
    assert labels(*content) == [("000000000.jpg", -1), ("000000001.jpg", -1)]


IMG2DATASET = [("jpg", b"\xff\xd8"), ("json", b'{"caption": "a cat", "status": "success"}'), ("txt", b"a cat")]
