from pathlib import Path

import pytest
from PIL import Image

from moco.runtime.errors import UserError
from moco.transfer.images import file_names, image_paths, make_empty, save_picture


def test_folders_give_their_images_and_files_are_taken_as_they_are(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/b.jpg", "in/deep/a.PNG", "in/notes.txt", "scan.raw"):
        (tmp_path / name).touch()
    found = image_paths([tmp_path / "scan.raw", tmp_path / "in"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["scan.raw", "in/b.jpg", "in/deep/a.PNG"]


def test_what_is_not_there_is_one_line(tmp_path):
    for given, message in (
        ([tmp_path / "no"], "no such image"),
        ([tmp_path], "no images in it"),
        ([], "no images are"),
    ):
        with pytest.raises(UserError, match=message):
            image_paths(given)


def test_no_two_files_have_one_name():
    names = file_names([Path(name) for name in ("x/a.jpg", "y/a.png", "a-2.png", "z/a.webp", "b.JPEG")])
    assert names == ["a.jpg", "a-2.png", "a-2-2.png", "a-3.png", "b.jpg"]


def test_what_is_there_is_not_overwritten(tmp_path):
    make_empty(tmp_path / "new" / "deep")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="not an empty folder"):
            make_empty(path)
    with pytest.raises(UserError, match="cannot be created"):
        make_empty(tmp_path / "file" / "under")


def test_pictures_are_written_as_their_names_say(tmp_path):
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG")):
        save_picture(Image.new("RGB", (3, 2), "red"), tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind
