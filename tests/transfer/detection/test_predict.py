import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.coco import open_coco
from moco.transfer.detection.instances import Detections
from moco.transfer.detection.masks import decode_rle
from moco.transfer.detection.predict import predict

CPU = choose_device("cpu", "fp32", channels_last=False)
CLASSES = ["cat", "dog"]


class Corner(nn.Module):
    """Finds a dog in the upper left quarter, surely, and a cat elsewhere, hardly."""

    def forward(self, images, sizes):
        found = []
        for height, width in sizes:
            boxes = torch.tensor([[0, 0, width / 2, height / 2], [4, 4, 12, 10]])
            masks = torch.zeros(2, height, width, dtype=torch.bool)
            masks[0, : height // 2, : width // 2] = True
            masks[1, 4:10, 4:12] = True
            keypoints = torch.tensor([[[5.5, 6.5, 0.7]], [[7.5, 8.5, 0.2]]])
            found.append(Detections(boxes, torch.tensor([0.9, 0.1]), torch.tensor([1, 0]), masks, keypoints))
        return found


def save(path: Path, width: int = 40, height: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
    return path


def run(paths, out, **settings):
    return predict(Corner(), CLASSES, paths, out, CPU, **{"side": 30, **settings})


def test_each_image_is_drawn_and_the_json_is_coco_s(tmp_path, caplog):
    paths = [save(tmp_path / "a" / "x.jpg"), save(tmp_path / "b" / "x.jpg", 60, 20), save(tmp_path / "x-2.png")]
    broken = tmp_path / "b" / "broken.png"
    broken.write_bytes(b"\x89PNG no")
    seen = []
    made = run([*paths[:2], broken, paths[2]], tmp_path / "out", batch=3, progress=lambda n: seen.extend(n) or n)
    assert (made.images, made.unreadable, seen) == (3, 1, [0, 1, 2, 3])
    assert "broken.png: cannot be decoded" in caplog.text
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["detections.json", "x-2-2.png", "x-2.jpg", "x.jpg"]
    with Image.open(tmp_path / "out" / "x.jpg") as drawn:
        assert drawn.size == (640, 512)
        assert np.asarray(drawn)[:200, :250].std() > np.asarray(drawn)[300:, 400:].std() + 1
    values = json.loads(made.json.read_text())
    assert values["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert values["images"][1] == {"id": 2, "file_name": str(paths[1]), "height": 20, "width": 60}
    assert [image["id"] for image in values["images"]] == [1, 2, 4]
    dogs = [a for a in values["annotations"] if a["category_id"] == 2]
    assert [dog["image_id"] for dog in dogs] == [1, 2, 4]
    assert dogs[1]["bbox"] == [0, 0, 30, 10]
    assert dogs[1]["score"] == pytest.approx(0.9)
    assert dogs[1]["area"] == 300
    assert dogs[1]["keypoints"] == [5, 6, 2]
    assert dogs[1]["keypoint_scores"] == pytest.approx([0.7])
    assert decode_rle(dogs[1]["segmentation"]).sum() == 300
    assert [a["id"] for a in values["annotations"]] == list(range(1, 7))


def test_the_json_is_a_set_of_annotated_images(tmp_path):
    made = run([save(tmp_path / f"{i}.png") for i in range(3)], tmp_path / "out")
    train, _ = open_coco(made.json, False)
    assert len(train) == 3
    assert train.classes == CLASSES
    assert train.target(0).boxes.tolist() == [[0, 0, 20, 16], [4, 4, 12, 10]]


def test_a_folder_that_holds_something_is_refused_before_anything_is_done(tmp_path):
    path = save(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    run([path], tmp_path / "out")
    before = (tmp_path / "out" / "detections.json").read_bytes()
    for out in (tmp_path / "out", path):
        with pytest.raises(UserError, match="is there already"):
            run([path], out)
    assert (tmp_path / "out" / "detections.json").read_bytes() == before


def test_without_a_readable_image_it_ends_with_the_first_error(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 1 images can be read: .*a\.jpg: the file is empty"):
        run([tmp_path / "a.jpg"], tmp_path / "out")
