import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.voc import CLASSES, open_voc


def xml(*objects: tuple, size: tuple[int, int] = (60, 40)) -> str:
    """An annotation: objects are (name, xmin, ymin, xmax, ymax) or with difficult behind; size is width, height."""
    body = "".join(
        f"<object><name>{name}</name><difficult>{(*more, 0)[0]}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d, *more in objects
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{body}</annotation>"


def write(folder: Path, annotations: dict[str, str], lists: dict[str, str]) -> Path:
    """A folder in VOC's layout, with a grey image for each annotation."""
    for below in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / below).mkdir(parents=True)
    for name, text in annotations.items():
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        Image.new("RGB", (60, 40), "grey").save(folder / "JPEGImages" / f"{name}.jpg")
    for split, names in lists.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names.split()) + "\n")
    return folder


BOX = ("cat", 1, 1, 20, 20)


def test_boxes_count_from_0_and_difficult_objects_are_trained_on(tmp_path):
    path = write(
        tmp_path / "own", {"a": xml(BOX, ("ant", 11, 6, 60, 40, 1)), "b": xml(BOX)}, {"train": "a", "val": "b"}
    )
    train, test = open_voc(path)
    assert train.classes == ["ant", "cat"]
    assert train.target(0).boxes.tolist() == [[0, 0, 20, 20], [10, 5, 60, 40]]
    assert train.target(0).classes.tolist() == [1, 0]
    assert train.truth(0).difficult.tolist() == [False, True]
    assert train.truth(0).area.tolist() == [400, 50 * 35]
    assert train.image(0).shape == (3, 40, 60)
    assert (len(train), len(test), test.name(0)) == (1, 1, str(path / "JPEGImages" / "b.jpg"))


@pytest.mark.parametrize(
    ("lists", "train_names", "test_names"),
    [
        ({"train": "a", "val": "b", "trainval": "a b", "test": "c"}, "ab", "c"),
        ({"train": "a", "val": "b", "trainval": "a b"}, "a", "b"),  # none is trained and tested on
        ({"trainval": "a b", "test": "d"}, "ab", ""),  # a list without annotations, as VOC2012's test
        ({}, "abc", ""),
    ],
)
def test_which_list_is_for_what(tmp_path, lists, train_names, test_names):
    path = write(tmp_path / "own", {name: xml(BOX) for name in "abc"}, lists)
    train, test = open_voc(path)
    assert "".join(Path(train.name(i)).stem for i in range(len(train))) == train_names
    assert "".join(Path(test.name(i)).stem for i in range(len(test or ()))) == test_names


def test_every_tenth_of_enough_images_is_tested_on_where_no_list_is(tmp_path):
    path = write(tmp_path / "own", {f"{i:02}": xml(BOX) for i in range(20)}, {})
    train, test = open_voc(path)
    assert (len(train), [Path(test.name(i)).stem for i in range(len(test))]) == (18, ["09", "19"])


def test_07_and_12_are_trained_on_together_and_have_20_classes(tmp_path):
    write(tmp_path / "VOC2007", {"a": xml(BOX), "t": xml(BOX)}, {"trainval": "a", "test": "t"})
    write(tmp_path / "VOC2012", {"b": xml(("dog", 1, 1, 9, 9)), "v": xml(BOX)}, {"trainval": "b v", "test": "none"})
    train, test = open_voc(tmp_path)
    assert [Path(train.name(i)).stem for i in range(len(train))] == ["a", "b", "v"]
    assert [Path(test.name(i)).stem for i in range(len(test))] == ["t"]
    assert train.classes == list(CLASSES)
    assert train.target(1).classes.tolist() == [CLASSES.index("dog")]
    assert len(open_voc(tmp_path / "VOC2007")[0]) == 1


def test_a_list_of_a_class_has_a_number_behind_each_name_and_names_may_hold_spaces(tmp_path):
    path = write(tmp_path / "own", {"a": xml(BOX), "b 1": xml(BOX)}, {})
    (path / "ImageSets" / "Main" / "train.txt").write_text("a  -1\nb 1\n")
    assert len(open_voc(path)[0]) == 2


def test_bad_boxes_are_skipped_and_counted_with_a_line_a_kind(tmp_path, caplog):
    bad = [
        ("cat", 70, 1, 80, 9),
        ("cat", 1, -9, 9, -1),
        ("cat", 30, 9, 20, 20),
        ("cat", 21, 1, 20, 9),
        ("cat", "nan", 1, 9, 9),
        ("cat", "", 1, 9, 9),
    ]
    path = write(tmp_path / "own", {"a": xml(*bad, BOX, ("cat", -5, 10, 99, 99))}, {"train": "a"})
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_voc(path)
    assert train.target(0).boxes.tolist() == [[0, 0, 20, 20], [0, 9, 60, 40]]  # the second is clipped
    assert train.truth(0).target.boxes[1].tolist() == [-6, 9, 99, 99]
    lines = sorted(record.getMessage().partition("skipped ")[2] for record in caplog.records)
    kinds = ["1 boxes without area", "1 reversed boxes", "2 boxes outside their image", "2 boxes that are not finite"]
    assert [line.partition(" (")[0] for line in lines] == kinds
    assert all("a.xml" in line for line in lines)


def test_images_without_annotations_and_annotations_without_images_are_skipped(tmp_path, caplog):
    path = write(tmp_path / "own", {name: xml(BOX) for name in "abc"}, {"train": "a b c"})
    (path / "Annotations" / "b.xml").unlink()
    (path / "JPEGImages" / "c.jpg").unlink()
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_voc(path)
    assert len(train) == 1
    assert "skipped 1 images without an annotation" in caplog.text
    assert "skipped 1 annotations without an image" in caplog.text


def test_an_image_without_objects_has_none(tmp_path):
    train, _ = open_voc(write(tmp_path / "own", {"a": xml(BOX), "b": xml()}, {"train": "a b"}))
    assert train.target(1).boxes.shape == (0, 4)
    assert train.truth(1).area.shape == (0,)
    assert train.with_objects().tolist() == [0]


def test_a_size_that_is_not_annotated_is_that_of_the_image(tmp_path):
    path = write(tmp_path / "own", {"a": xml(BOX, size=(0, 0))}, {"train": "a"})
    train, _ = open_voc(path)
    assert train.truth(0).size == (40, 60)


@pytest.mark.parametrize(("size", "hint"), [((40, 60), "EXIF"), ((61, 40), "annotate it anew")])
def test_an_image_of_another_size_than_its_annotation_is_refused(tmp_path, size, hint):
    train, _ = open_voc(write(tmp_path / "own", {"a": xml(BOX, size=size)}, {"train": "a"}))
    with pytest.raises(UserError, match=f"a.jpg: has 60x40 pixels, and its annotation.*{hint}"):
        train.image(0)


def test_a_damaged_image_is_refused_by_name(tmp_path):
    path = write(tmp_path / "own", {"a": xml(BOX)}, {"train": "a"})
    (path / "JPEGImages" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.jpg"):
        open_voc(path)[0].image(0)


ENTITIES = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cat">]><annotation><object><name>&b;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("text", "message"), [(ENTITIES, "has entities"), (xml(BOX)[:60], "no whole XML"), ("", "no whole XML")]
)
def test_xml_with_entities_or_cut_off_is_refused(tmp_path, text, message):
    path = write(tmp_path / "own", {"a": text}, {"train": "a"})
    with pytest.raises(UserError, match=rf"a\.xml: is.*{message}|a\.xml: is refused: it {message}") as error:
        open_voc(path)
    assert "\n" not in str(error.value)


def test_unknown_classes_are_refused(tmp_path):
    challenge = write(tmp_path / "VOC2007", {"a": xml(("catt", 1, 1, 9, 9))}, {"train": "a"})
    with pytest.raises(UserError, match=r"unknown class 'catt': did you mean cat\?"):
        open_voc(challenge)
    own = write(tmp_path / "own", {"a": xml(BOX), "b": xml(("dog", 1, 1, 9, 9))}, {"train": "a", "test": "b"})
    with pytest.raises(UserError, match=r"b\.jpg: unknown class 'dog'.*the classes are cat"):
        open_voc(own)


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither Annotations nor VOC2007"):
        open_voc(tmp_path)
    with pytest.raises(UserError, match="no training image"):
        open_voc(write(tmp_path / "own", {}, {}))
    with pytest.raises(UserError, match="no object"):
        open_voc(write(tmp_path / "empty", {"a": xml()}, {}))


def test_a_thousand_objects_in_one_image(tmp_path):
    boxes = [("cat", 1 + i % 50, 1 + i % 30, 5 + i % 50, 5 + i % 30) for i in range(1000)]
    train, _ = open_voc(write(tmp_path / "own", {"a": xml(*boxes)}, {"train": "a"}))
    assert torch.equal(train.target(0).boxes, train.truth(0).target.boxes)
    assert len(train.target(0)) == 1000
