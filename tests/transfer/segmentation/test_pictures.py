import numpy as np
import torch

from moco.transfer.segmentation.pictures import as_mask, draw_over, legend, palette

CLASSES = ("background", *(f"class {i}" for i in range(20)))
LABELS = torch.tensor([[0, 1, 20], [255, 2, 0]], dtype=torch.uint8)


def test_a_mask_has_the_labels_as_values_and_the_classes_colours():
    mask = as_mask(LABELS, CLASSES)
    assert (np.array(mask) == LABELS.numpy()).all()
    colours = np.array(mask.convert("RGB"))
    assert colours[0].tolist() == [list(palette(CLASSES)[label]) for label in (0, 1, 20)]
    assert colours[1, 0].tolist() == [255, 255, 255]


def test_colours_are_far_from_each_other():
    colours = torch.tensor(palette(CLASSES)).float()
    distances = torch.cdist(colours, colours) + 1000 * torch.eye(len(colours))
    assert distances.min() > 25


def test_over_an_image_background_and_ignored_pixels_stay():
    image = torch.full((3, 2, 3), 200, dtype=torch.uint8)
    drawn = np.array(draw_over(image, LABELS, CLASSES))
    kept = (drawn == 200).all(-1)
    assert kept.tolist() == [[True, False, False], [True, False, True]]
    named = np.array(draw_over(image, LABELS, ("sky", *CLASSES[1:])))
    assert not (named[0, 0] == 200).all()


def test_a_legend_of_many_classes_has_columns():
    names = [f"class {i}" for i in range(50)]
    picture = np.array(legend(names, range(50)))
    assert picture.shape == (320, 320, 3)
    colours = palette(names)
    for label, place in ((0, (8, 5)), (20, (8, 106 + 5)), (49, (9 * 16 + 8, 2 * 106 + 5))):
        assert tuple(picture[place].tolist()) == colours[label]
