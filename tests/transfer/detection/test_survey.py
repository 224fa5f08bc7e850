from PIL import Image

from moco.cli.main import main
from moco.transfer.detection.dataset import open_detection
from moco.transfer.detection.survey import survey_detection

YAML = "train: images/train\nval: images/val\nnames: [cat, dog, cow]\n"


def write(folder):
    for name, text in (
        ("train/a", "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.2 0.2"),
        ("train/b", None),
        ("val/c", "1 0.5 0.5 1 1"),
    ):
        for kind in ("images", "labels"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "grey").save(folder / "images" / f"{name}.png")
        if text is not None:
            (folder / "labels" / f"{name}.txt").write_text(text)
    (folder / "data.yaml").write_text(YAML)
    return folder


def test_objects_classes_and_broken_images_are_counted(tmp_path):
    train, _ = open_detection(f"yolo:{write(tmp_path)}")
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    found = survey_detection(train, 0)
    assert (found.total, found.examined, found.objects, found.shorter_sides) == (2, [0], [2], [40])
    assert found.per_class == {"cat": 1, "dog": 1, "cow": 0}
    rows = dict(found.rows())
    assert rows["objects"] == "2 with boxes; least / median / most: 2 / 2 / 2"
    assert rows["classes"].startswith("2 of 3: cat 1, dog 1")
    assert "b.png" in rows["broken"]


def test_masks_of_shapes_and_a_sample():
    found = survey_detection(open_detection("shapes", size=64)[0], 5)
    assert len(found.examined) == 5
    assert (found.masks, found.keypoints) == (True, False)
    assert "sampled at random" in dict(found.rows())["images"]


def test_moco_data_draws_a_sheet_of_annotated_images(tmp_path, capsys):
    main(["data", f"yolo:{write(tmp_path)}", "--out", str(tmp_path / "sheet.png")])
    out = capsys.readouterr().out
    assert "2 of 3: cat 1, dog 1" in out  # of the training images
    assert "1 of 3: dog 1" in out  # of the test image
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 300
