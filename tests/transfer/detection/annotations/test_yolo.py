import logging
from pathlib import Path

import pytest
from PIL import Image

from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.yolo import open_yolo

BOX = "1 0.5 0.5 0.5 0.5"
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def write(folder: Path, labels: dict[str, str | None], yaml: str | None = YAML) -> Path:
    """Grey images of 60x40 under `images`, and what their text files hold; None: there is none."""
    for name, text in labels.items():
        image, label = folder / "images" / f"{name}.png", folder / "labels" / f"{name}.txt"
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "grey").save(image)
        if text is not None:
            label.write_text(text)
    if yaml is not None:
        (folder / "data.yaml").write_text(yaml)
    return folder


def test_boxes_are_shares_of_the_sides(tmp_path):
    train, test = open_yolo(write(tmp_path, {"train/a": f"{BOX}\n\n0 0 0 1 1\n", "val/b": BOX}))
    assert train.classes == ["cat", "dog"]
    assert train.target(0).boxes.tolist() == [[15, 10, 45, 30], [0, 0, 30, 20]]  # the second clipped
    assert train.target(0).classes.tolist() == [1, 0]
    assert train.target(0).masks is None
    assert train.truth(0).area.tolist() == [600, 2400]
    assert train.truth(0).size == (40, 60)
    assert len(test) == 1


def test_polygons_become_masks_and_boxes(tmp_path):
    train, _ = open_yolo(write(tmp_path, {"train/a": "0 0.25 0.25 0.75 0.25 0.75 0.5", "val/b": BOX}))
    target = train.target(0)
    assert target.boxes.tolist() == [[15, 10, 45, 20]]
    assert target.masks[0][0].tolist() == [15, 10, 45, 10, 45, 20]
    assert train.truth(0).area.tolist() == [150]


def test_where_masks_are_not_wanted_objects_without_one_are_trained_on(tmp_path, caplog):
    polygon = "0 0.25 0.25 0.75 0.25 0.75 0.5"
    write(tmp_path, {"train/a": f"{polygon}\n{polygon}\n{BOX}", "val/b": BOX})
    with caplog.at_level(logging.WARNING, "moco"):
        train, test = open_yolo(tmp_path, masks=False)
    assert (len(train.target(0)), train.target(0).masks, len(test.target(0))) == (3, None, 1)
    assert not caplog.records
    train, test = open_yolo(tmp_path)
    assert (len(train.target(0)), len(test.target(0))) == (2, 0)


def test_an_image_without_a_text_file_has_no_objects(tmp_path):
    train, _ = open_yolo(write(tmp_path, {"train/a": BOX, "train/b": None, "train/c": "", "val/d": BOX}))
    assert [len(train.target(i)) for i in range(3)] == [1, 0, 0]
    assert train.with_objects().tolist() == [0]


@pytest.mark.parametrize(
    "yaml",
    [
        "path: /elsewhere/data\ntrain: ../images/train\nval: ../images/val\nnames: {0: cat, 1: dog}\n",
        "train: [images/train]\nval: list.txt\nnames:\n- cat\n- dog\n",
        "path: images\ntrain: train\ntest: val\nnames: [cat, dog]\n",
        None,
    ],
)
def test_the_spellings_of_data_yaml(tmp_path, yaml):
    write(tmp_path, {"train/a": BOX, "val/b": BOX}, yaml)
    (tmp_path / "list.txt").write_text("images/val/b.png\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    train, test = open_yolo(tmp_path)
    assert [Path(split.name(0)).stem for split in (train, test)] == ["a", "b"]
    assert [len(split.target(0)) for split in (train, test)] == [1, 1]
    assert train.classes == ["cat", "dog"]


def test_splits_as_folders_of_images_and_labels(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path / split, {"a": BOX}, None)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cat, dog]\n")
    train, test = open_yolo(tmp_path)
    assert (len(train.target(0)), len(test.target(0))) == (1, 1)
    assert len(open_yolo(tmp_path / "data.yaml")[0]) == 1


def test_images_and_labels_without_splits(tmp_path):
    write(tmp_path, {f"{i:02}": BOX for i in range(20)}, None)
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    train, test = open_yolo(tmp_path)
    assert (len(train), len(test)) == (18, 2)


def test_bad_lines_and_labels_without_image_are_counted(tmp_path, caplog):
    lines = ["0 1.5 0.5 0.2 0.2", "0 0.5 0.5 -0.1 0.2", "0 0.5 0.5 0 0.2", "0 nan 0.5 0.1 0.1", "0 1 1", "a b c d e"]
    write(tmp_path, {"train/a": "\n".join([*lines, BOX]), "train/b": BOX, "val/c": BOX})
    (tmp_path / "images" / "train" / "b.png").unlink()
    with caplog.at_level(logging.WARNING, "moco"):
        train, _ = open_yolo(tmp_path)
    assert len(train.target(0)) == 1
    found = sorted(r.getMessage().partition("skipped ")[2].partition(" (the first")[0] for r in caplog.records)
    assert found == [
        "1 annotations without an image",
        "1 boxes outside their image",
        "1 boxes that are not finite",
        "1 boxes without area",
        "1 reversed boxes",
        "2 lines that are neither a class and a box nor a class and a polygon",
    ]


@pytest.mark.parametrize("label", ["2", "-1", "0.5"])
def test_an_unknown_class_is_refused_by_line(tmp_path, label):
    write(tmp_path, {"train/a": f"{BOX}\n{label} 0.5 0.5 0.1 0.1", "val/b": BOX})
    with pytest.raises(UserError, match=rf"a\.txt:2: unknown class {label} \(there are 2"):
        open_yolo(tmp_path)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [", "is no YAML"),
        ("- a", "has no names, train and val"),
        ("names: {1: cat}", "numbered from 0 without gaps"),
        ("train: images/train\n", "the classes' names are missing"),
        ("train: images/tran\nnames: [cat, dog]", "train: images/tran, and there is no such"),
        ("!!python/object:os.system {}", "is no YAML"),
    ],
)
def test_a_wrong_data_yaml_is_refused_in_one_line(tmp_path, yaml, message):
    write(tmp_path, {"train/a": BOX}, yaml)
    with pytest.raises(UserError, match=message) as error:
        open_yolo(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_images_or_labels_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match="no images to train on"):
        open_yolo(tmp_path)
    with pytest.raises(UserError, match=r"none of 1 images to train on has an object: .*a\.txt"):
        open_yolo(write(tmp_path, {"train/a": None}, None))


def test_a_thousand_objects_in_one_image(tmp_path):
    train, _ = open_yolo(write(tmp_path, {"train/a": f"{BOX}\n" * 1000, "val/b": BOX}))
    assert len(train.target(0)) == 1000
