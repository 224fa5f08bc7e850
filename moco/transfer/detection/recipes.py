"""The detectors of section 4.2 and appendix A, and two for anyone's images."""

from dataclasses import replace

from moco.runs.config import Encoder
from moco.transfer.config import LabelledData
from moco.transfer.detection.config import DetectionConfig, DetectionSchedule, Evaluation, Model
from moco.transfer.recipes import TransferRecipe

_HE = "He et al. 2020, section 4.2 and appendix A, and the released code's Detectron2 configurations"
_RESNET50 = Encoder("resnet50")
_VOC = DetectionConfig(data=LabelledData("voc:data/VOCdevkit"), encoder=_RESNET50)
_COCO = DetectionConfig(
    data=LabelledData("coco:data/coco"),
    encoder=_RESNET50,
    model=Model(masks=True),
    training=DetectionSchedule(
        iterations=90_000,
        milestones=(60_000, 80_000),
        warmup=1000,
        sides=(640, 672, 704, 736, 768, 800),
    ),
    evaluation=Evaluation("coco"),
)
_LONG = replace(_COCO.training, iterations=180_000, milestones=(120_000, 160_000))
_OWN = DetectionConfig(
    data=LabelledData(""),
    encoder=_RESNET50,
    model=Model(masks=True),  # where there are any, as is suggested
    training=DetectionSchedule(warmup=100),
    evaluation=Evaluation("coco"),
)


def _paper(name: str, about: str, reaches: str, config: DetectionConfig) -> TransferRecipe:
    steps = f"{config.training.iterations:,} steps of {config.training.batch_size} images"
    return TransferRecipe(about, f"{steps}; not timed here", reaches, replace(config, recipe=name), _HE)


def _own(name: str, about: str, config: DetectionConfig) -> TransferRecipe:
    cost = "from minutes on a GPU to an hour on two CPU cores"
    return TransferRecipe(about, cost, "depends on the images", replace(config, recipe=name), "this project")


_FPN = Model("fpn", masks=True)
DETECTION = {
    recipe.name: recipe
    for recipe in [
        _paper(
            "voc-r50-c4",
            "VOC detection, Faster R-CNN R50-C4, trainval07+12, test2007",
            "AP 55.9, AP50 81.5, AP75 62.6 (MoCo IN-1M)",
            _VOC,
        ),
        _paper(
            "voc07-r50-c4",
            "the same on trainval2007 alone; the learning rate falls in proportion to voc-r50-c4",
            "AP 46.6, AP50 74.9, AP75 50.1 (MoCo IN-1M)",
            replace(
                _VOC,
                data=LabelledData("voc:data/VOCdevkit/VOC2007"),
                training=DetectionSchedule(iterations=9000, milestones=(6750, 8250)),
            ),
        ),
        _paper(
            "voc-r50-dc5",
            "VOC detection, Faster R-CNN R50-dilated-C5 (appendix A.1)",
            "not in this project's list of published figures",
            replace(_VOC, model=Model("dc5")),
        ),
        _paper(
            "coco-r50-c4-1x",
            "COCO detection and instance segmentation, Mask R-CNN R50-C4, 1x",
            "not in this project's list of published figures",
            _COCO,
        ),
        _paper(
            "coco-r50-c4-2x",
            "the same, 2x",
            "not in this project's list of published figures",
            replace(_COCO, training=_LONG),
        ),
        _paper(
            "coco-r50-fpn-1x",
            "COCO detection and instance segmentation, Mask R-CNN R50-FPN, 1x",
            "not in this project's list of published figures",
            replace(_COCO, model=_FPN),
        ),
        _paper(
            "coco-r50-fpn-2x",
            "the same, 2x",
            "box AP 40.8, mask AP 36.9 (MoCo IN-1M)",
            replace(_COCO, model=_FPN, training=_LONG),
        ),
        _paper(
            "coco-keypoints-r50-fpn",
            "COCO keypoints, R50-FPN, 2x",
            "not in this project's list of published figures",
            replace(_COCO, model=Model("fpn", keypoints=True), training=_LONG),
        ),
        _own("own-c4", "your annotated images, R50-C4: scales, length and batch follow from them", _OWN),
        _own(
            "own-fpn",
            "your annotated images, R50-FPN: better where objects are small",
            replace(_OWN, model=_FPN),
        ),
    ]
}
