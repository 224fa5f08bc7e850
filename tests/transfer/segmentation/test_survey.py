import numpy as np
from PIL import Image

from moco.cli.main import main
from moco.transfer.segmentation.sets import open_segmentation
from moco.transfer.segmentation.survey import survey_segmentation


def write(folder, images=20):
    """Images of which every second has a quarter of class 1 and a row of ignored pixels; nothing has class 2."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(images):
        Image.new("RGB", (60, 40), (9 * number, 80, 80)).save(folder / "images" / f"{number:02}.png")
        labels = np.zeros((40, 60), np.uint8)
        if number % 2:
            labels[:20, :30] = 1
            labels[-1] = 255
        Image.fromarray(labels).save(folder / "masks" / f"{number:02}.png")
    (folder / "classes.txt").write_text("background\ncell\nvessel\n")
    return folder


def test_the_pixels_of_each_class_and_broken_masks_are_counted(tmp_path):
    train, _ = open_segmentation(f"own:{write(tmp_path)}")
    (tmp_path / "masks" / "01.png").write_bytes(b"no image")
    found = survey_segmentation(train, 0)
    assert len(found.examined) == len(train) - 1
    odd = sum(int(train.name(i)[-6:-4]) % 2 for i in found.examined)
    assert found.images == {"background": len(found.examined), "cell": odd, "vessel": 0}
    assert (found.pixels["cell"], found.ignored) == (600 * odd, 60 * odd)
    assert sum(found.pixels.values()) + found.ignored == 2400 * len(found.examined)
    rows = dict(found.rows())
    assert rows["not in the set"] == "vessel"
    assert rows["classes"].startswith("2 of 3; share of the pixels (images): background ")
    assert f"cell {600 * odd / (2400 * len(found.examined)):.1%} ({odd})" in rows["classes"]
    assert "01.png" in rows["broken"]


def test_moco_data_draws_a_sheet_of_labels(tmp_path, capsys):
    main(["data", f"own:{write(tmp_path / 'set')}", "--out", str(tmp_path / "sheet.png")])
    out = capsys.readouterr().out
    assert out.count("cell") >= 2  # a table of the training images and one of those of validation
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert len(colours) > 20
