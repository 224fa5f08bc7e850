"""A folder's images are found, each once, whatever else lies there."""

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco.data import Files
from moco.data.sources.folder import find_images, list_folder
from moco.data.sources.registry import open_source
from moco.runtime.errors import UserError
from tests.data.test_dataset import write


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root):
    return sorted(path.removeprefix(f"{root}/") for path in find_images(root))


def test_at_any_depth_by_suffix(tmp_path):
    images = ["a.jpg", "b/c.JPEG", "b/c/d/e.Png", "f.webp", "g.bmp", "h.tif", "i.TIFF", "j.gif", "with space/ü.png"]
    touch(tmp_path, *images, "notes.txt", "jpg", "b/c.jpg.part", "b/.jpg/x.txt")
    assert found(tmp_path) == sorted(images)


def test_what_is_hidden_is_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", ".thumbs/a.jpg", "__MACOSX/a.jpg")
    assert found(tmp_path) == ["a.jpg"]


def test_names_that_are_no_unicode(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"x")
    files = Files(find_images(tmp_path))
    assert files.name(0) == str(tmp_path / name)
    assert files.read(0) == b"x"


def test_links_are_followed_and_may_go_in_circles(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    touch(inside, "a/1.jpg", "b/2.jpg")
    touch(outside, "3.jpg", "deep/4.jpg")
    (inside / "a/up").symlink_to(inside)
    (inside / "c").symlink_to(outside)
    (outside / "back").symlink_to(inside / "b")
    (inside / "0").symlink_to(inside / "b")
    (inside / "b/self.jpg").symlink_to(inside / "b/self.jpg")
    (inside / "linked.jpg").symlink_to(outside / "3.jpg")
    assert found(inside) == ["a/1.jpg", "b/2.jpg", "b/self.jpg", "c/3.jpg", "c/deep/4.jpg", "linked.jpg"]


def test_pipes_are_not_waited_for(tmp_path):
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    assert found(tmp_path) == ["a.jpg"]


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch, logged):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def guarded(folder):
        if folder.endswith("b"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)  # root, as whom CI may run, is denied nothing
    assert found(tmp_path) == ["a/1.jpg"]
    (record,) = logged.records
    assert record.getMessage() == f"skipped a folder that cannot be read: {tmp_path}/b: Permission denied"


def test_nothing_there(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=r"no images here \(.*\.jpg"):
        list_folder(tmp_path, 0.01, None)


def test_labels_are_the_folders_at_the_top(tmp_path):
    touch(tmp_path, "b-2/x.jpg", "b/y/1.jpg", "a/z.jpg", "b/2.jpg")
    images, classes = list_folder(tmp_path, 0.01, None)
    assert classes == ["a", "b", "b-2"]
    named = {images.name(i).removeprefix(f"{tmp_path}/"): classes[images.labels[i]] for i in range(len(images))}
    assert named == {"a/z.jpg": "a", "b-2/x.jpg": "b-2", "b/2.jpg": "b", "b/y/1.jpg": "b"}


@pytest.mark.parametrize("names", [["a/1.jpg", "b/2.jpg", "3.jpg"], ["a/1.jpg", "a/2.jpg"], ["1.jpg", "2.jpg"]])
def test_no_labels(tmp_path, names):
    touch(tmp_path, *names)
    images, classes = list_folder(tmp_path, 0.01, None)
    assert len(images) == len(names)
    assert images.labels is classes is None


def test_test_images_have_the_classes_of_the_training_images(tmp_path):
    touch(tmp_path, "a/1.jpg", "c/2.jpg")
    images, classes = list_folder(tmp_path, 0.01, ["a", "b", "c"])
    assert images.labels.tolist() == [0, 2]
    assert classes == ["a", "b", "c"]
    with pytest.raises(UserError, match="classes that are not among the training images': c"):
        list_folder(tmp_path, 0.01, ["a", "b"])


def test_a_file_that_disappears_and_a_link_to_nowhere_are_bad_images(tmp_path, logged):
    write(tmp_path, 6, sizes=((12, 10), (10, 12)))
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    images = open_source(f"folder:{tmp_path}", max_bad=0.5).train
    (tmp_path / "004.png").unlink()
    errors = {}
    assert images.readable_near(4, errors)[0] == 5
    assert images.readable_near(6, errors)[0] == 0
    images.report(errors)
    assert [record.getMessage().partition(" so far): ")[2] for record in logged.records] == [
        f"{tmp_path}/004.png: No such file or directory",
        f"{tmp_path}/nowhere.png: No such file or directory",
    ]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=8))
def test_names_survive(names):
    files = pickle.loads(pickle.dumps(Files(names)))
    assert [files.name(i) for i in range(len(files))] == names


def test_a_million_names_are_small():
    assert len(pickle.dumps(Files(f"/data/train/{i % 1000:04}/{i:08}.jpg" for i in range(100_000)))) < 4.5e6
