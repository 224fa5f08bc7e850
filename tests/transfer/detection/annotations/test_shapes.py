import pytest
import torch

from moco.data.sources.shapes import boxes_of
from moco.runtime.errors import UserError
from moco.transfer.detection.annotations.shapes import OBJECTS, DrawnImages, open_shapes


def test_an_image_is_a_function_of_its_number():
    train, test = open_shapes(64)
    assert torch.equal(train.image(7), train.subset([7]).image(0))
    assert train.subset([7]).name(0) == train.name(7)
    assert not torch.equal(train.image(0), test.image(0))
    assert not torch.equal(train.image(0), DrawnImages(range(1), 64, seed=1).image(0))


def test_objects_have_tight_boxes_and_masks_that_do_not_overlap():
    images = DrawnImages(range(40), 64)
    numbers = set()
    for i in range(len(images)):
        target = images.target(i)
        numbers.add(len(target))
        assert images.image(i).shape == (3, 64, 64)
        assert torch.equal(target.boxes, boxes_of(target.masks))
        assert (target.masks.sum(0) <= 1).all()
        assert target.classes.max() < 10
        assert torch.equal(images.truth(i).area, target.masks.sum((1, 2)).double())
    assert numbers == set(range(1, OBJECTS + 1))


def test_too_small_an_image_is_refused():
    with pytest.raises(UserError, match="from 32 pixels"):
        open_shapes(16)
