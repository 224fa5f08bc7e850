"""Semantic segmentation as in section 4.2 and appendix A.5, and for anyone's images."""

from dataclasses import replace

from moco.runs.config import Encoder
from moco.transfer.config import LabelledData
from moco.transfer.recipes import TransferRecipe
from moco.transfer.segmentation.config import SegmentationConfig, SegmentationSchedule

_HE = "He et al. 2020, section 4.2 and appendix A.5"
_NO_FIGURE = "not in this project's list of published figures"
_VOC = SegmentationConfig(recipe="voc-fcn", data=LabelledData("voc:data/VOCdevkit"), encoder=Encoder("resnet50"))
_CITYSCAPES = replace(
    _VOC,
    recipe="cityscapes-fcn",
    data=LabelledData("cityscapes:data/cityscapes"),
    training=SegmentationSchedule(lr=0.01, iterations=90_000, milestones=(63_000, 81_000), crop=769),
)

SEGMENTATION = {
    recipe.name: recipe
    for recipe in [
        TransferRecipe(
            "VOC semantic segmentation, FCN-16s with dilation, train_aug2012, val2012",
            "30,000 steps of 16 crops of 513 pixels; not timed here",
            _NO_FIGURE,
            _VOC,
            _HE,
        ),
        TransferRecipe(
            "Cityscapes semantic segmentation, the same network, train_fine, val",
            "90,000 steps of 16 crops of 769 pixels; not timed here",
            _NO_FIGURE,
            _CITYSCAPES,
            _HE,
        ),
        TransferRecipe(
            "your images with a class for every pixel: crop, length and batch follow from them",
            "from minutes on a GPU to an hour on two CPU cores",
            "depends on the images",
            replace(_VOC, recipe="own-fcn", data=LabelledData("")),
            "this project",
        ),
    ]
}
