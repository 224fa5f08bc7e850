import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from moco.runtime.errors import UserError
from moco.transfer.detection.structures import build_detector
from moco.transfer.detection.trained import TrainedDetector
from tests.transfer.detection.oracle import CLASSES, Oracle, found_in, size_of


def grey(number: int) -> torch.Tensor:
    return torch.full((3, *size_of(number)), number, dtype=torch.uint8)


def test_tensors_pictures_and_paths_are_the_same_image(tmp_path):
    trained = TrainedDetector(Oracle(), CLASSES, side=30, maximum=40)
    picture = Image.fromarray(grey(7).permute(1, 2, 0).numpy())
    picture.save(tmp_path / "seven.png")
    found = trained([grey(7), picture, tmp_path / "seven.png", str(tmp_path / "seven.png"), grey(9)])
    assert len(found) == 5
    for each in found[:4]:
        assert torch.equal(each.boxes, found_in(7).boxes)
        assert torch.equal(each.masks, found_in(7).masks)
    assert torch.equal(found[4].boxes, found_in(9).boxes)
    assert trained.detector.seen[0] == (28, 40)  # of 42 x 60
    assert trained.classes == CLASSES


def test_a_picture_is_put_upright_as_a_file_is(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    trained = TrainedDetector(build_detector("dc5", resnet18(), 2, width=16), ["a", "b"], side=32)
    given = []
    trained.detector.forward = lambda images, sizes: given.append(images[0].shape[1:]) or [None]
    with Image.open(tmp_path / "turned.png") as picture:
        trained([picture, tmp_path / "turned.png"])
    assert given == [(48, 32), (48, 32)]


def test_it_detects_in_evaluation_whatever_its_mode_and_has_the_detector_s_weights():
    detector = build_detector("dc5", resnet18(), 2, width=16)
    detector.rpn.limits.after_nms = 8
    trained = TrainedDetector(detector, ["a", "b"], side=32)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    (before,) = trained([image])
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    (after,) = trained.train()([image])
    assert torch.equal(before.boxes, after.boxes)
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    assert trained.detector.training
    assert before.boxes.max() <= 50
    assert set(state) == {f"detector.{name}" for name in detector.state_dict()}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("street.jpg", "takes a list of images"),
        (grey(3), "takes a list of images"),
        ([grey(3).float()], r"not torch\.float32 \(3, 43, 57\)"),
        ([grey(3)[:1]], r"not torch\.uint8 \(1, 43, 57\)"),
        ([7], "not int"),
        (["nowhere.jpg"], "nowhere.jpg: cannot be read"),
    ],
)
def test_what_is_no_list_of_images_is_refused(images, message):
    with pytest.raises(UserError, match=message):
        TrainedDetector(Oracle(), CLASSES, side=30)(images)
