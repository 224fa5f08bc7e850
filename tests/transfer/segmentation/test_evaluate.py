import json
import logging

import pytest
import torch
from PIL import Image

from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.transfer.segmentation.evaluate import evaluate_segmentation
from moco.transfer.segmentation.inference import infer
from moco.transfer.segmentation.miou import confusion, scores
from moco.transfer.segmentation.results import examples_of, results_table, write_results

CPU = Device(torch.device("cpu"), False, True)


class Brightness(torch.nn.Module):
    """The class of a pixel is its red value."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        return torch.nn.functional.one_hot(images[:, 0].long(), 4).permute(0, 3, 1, 2).float()


class Rows:
    """Images of several sizes; some are broken."""

    classes = ("a", "b", "c", "d")

    def __init__(self, n=5, broken=(), ignored=False):
        torch.manual_seed(0)
        self.pairs = [torch.randint(0, 3, (2, 4 + i, 7), dtype=torch.uint8) for i in range(n)]
        self.broken = broken
        for pair in self.pairs:
            pair[1][0] = 255
            if ignored:
                pair[1][:] = 255

    def __len__(self):
        return len(self.pairs)

    def name(self, index):
        return f"folder/{index}.png"

    def read(self, index):
        if index in self.broken:
            raise UserError(f"{index}: is broken")
        image, labels = self.pairs[index]
        return image.expand(3, -1, -1).contiguous(), labels


@pytest.mark.parametrize("workers", [0, 1])
def test_every_pixel_of_every_image_counts_once(workers, tmp_path):
    images, model = Rows(), Brightness()
    found = evaluate_segmentation(model, images, CPU, workers)
    matrix = sum(confusion(image, labels, 4) for image, labels in images.pairs)
    assert torch.equal(found.confusion, matrix)
    assert found.numbers == {"mIoU": 100 * scores(matrix).miou, "pixel accuracy": 100 * scores(matrix).accuracy}
    assert (found.images, found.unreadable, found.per_class[3]) == (5, 0, {"class": "d", "pixels": 0, "IoU": None})
    assert model.modes == [False] * 5
    assert model.training


def test_what_cannot_be_read_is_left_out_and_counted(caplog):
    logging.getLogger("moco").propagate = True
    found = evaluate_segmentation(Brightness(), Rows(broken=(1, 3)), CPU)
    assert (found.images, found.unreadable) == (3, 2)
    assert "without 2 of 5 test images, which cannot be read: 1: is broken" in caplog.text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Rows(2, broken=(0, 1)), "none of 2 test images can be read: 0: is broken"),
        (Rows(ignored=True), "no pixel of 5"),
    ],
)
def test_nothing_to_evaluate_is_one_line(images, message):
    with pytest.raises(UserError, match=message):
        evaluate_segmentation(Brightness(), images, CPU)


def test_inference_names_what_is_broken():
    broken = {}
    found = infer(Brightness(), Rows(broken=(2,)).read, [4, 2, 0], CPU, broken.__setitem__)
    assert [(number, tuple(predicted.shape), predicted.dtype) for number, _, predicted in found] == [
        (4, (8, 7), torch.uint8),
        (0, (4, 7), torch.uint8),
    ]
    assert broken == {2: "2: is broken"}


def test_results_are_json_a_sheet_and_a_table(tmp_path):
    images, model = Rows(broken=(0,)), Brightness()
    found = evaluate_segmentation(model, images, CPU)
    examples = examples_of(model, images, CPU, number=3)
    assert [name for name, *_ in examples] == ["folder/2.png", "folder/4.png"]  # 0 of 0, 2, 4 is broken
    assert torch.equal(examples[0][3], images.pairs[2][0])
    write_results(tmp_path, found, examples, {"seed": 3})
    values = json.loads((tmp_path / "results.json").read_text())
    assert (values["seed"], values["images"], values["numbers"]) == (3, 4, found.numbers)
    with Image.open(tmp_path / "predictions.png") as sheet:
        assert sheet.size == (3 * 326 + 6, 3 * 340 + 6)
    assert results_table(found).row_count == 4
