import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from moco.runtime.errors import UserError
from moco.transfer.segmentation.fcn import FCN
from moco.transfer.segmentation.trained import TrainedSegmenter

CLASSES = ["road", "sky", "tree"]


@pytest.fixture(scope="module")
def trained() -> TrainedSegmenter:
    torch.manual_seed(0)
    network = FCN(resnet18(), len(CLASSES), width=16)
    torch.nn.init.normal_(network.classifier.weight)
    return TrainedSegmenter(network, CLASSES)


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_tensors_pictures_and_paths_are_the_same_image(trained, tmp_path):
    picture = Image.fromarray(noise(40, 50).permute(1, 2, 0).numpy())
    picture.save(tmp_path / "noise.png")
    found = trained([noise(40, 50), picture, tmp_path / "noise.png", str(tmp_path / "noise.png"), noise(20, 60)])
    assert [tuple(labels.shape) for labels in found] == [(40, 50)] * 4 + [(20, 60)]
    assert all(torch.equal(labels, found[0]) for labels in found[1:4])
    assert found[0].dtype == torch.uint8
    assert set(found[0].unique().tolist()) <= {0, 1, 2}
    assert len(found[0].unique()) > 1
    assert {trained.classes[label] for label in found[0].unique()} <= set(CLASSES)


def test_a_picture_is_put_upright_as_a_file_is(trained, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        assert [tuple(labels.shape) for labels in trained([picture, tmp_path / "turned.png"])] == [(30, 20)] * 2


def test_it_segments_in_evaluation_whatever_its_mode(trained):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    (expected,) = trained([noise(40, 50)])
    (found, _) = trained.train()([noise(40, 50), noise(30, 30)])
    assert torch.equal(found, expected)
    assert trained.network.training
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    with torch.no_grad():
        assert torch.equal(found, trained.eval().network(noise(40, 50)[None])[0].argmax(0).byte())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("street.jpg", "takes a list of images"),
        (noise(8, 8), "takes a list of images"),
        ([noise(8, 8).float()], r"not torch\.float32 \(3, 8, 8\)"),
        ([7], "not int"),
        (["nowhere.jpg"], "nowhere.jpg: cannot be read"),
    ],
)
def test_what_is_no_list_of_images_is_refused(trained, images, message):
    with pytest.raises(UserError, match=message):
        trained(images)
