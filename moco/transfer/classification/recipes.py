"""Fine-tuning as published (appendices A.6 and A.7), and for anyone's images."""

from moco.transfer.classification.config import (
    ClassificationConfig,
    ClassificationSchedule,
    ClassifiedData,
    TrainingViews,
)
from moco.transfer.recipes import TransferRecipe

SCRATCH_LR = {"imagenet-r50": 0.1, "inat18-r50": 0.1}
"""The published learning rate from random weights, where it is another than from given ones."""

LINEAR_FALLS = (0.6, 0.8)
"""Shares of the linear protocol's length at which its learning rate falls (section 4.1)."""

CLASSIFICATION = {
    recipe.name: recipe
    for recipe in [
        TransferRecipe(
            about="ImageNet, ResNet-50, all layers fine-tuned",
            cost="100 epochs of 1.28 M images; not timed here",
            reaches="76.5 from scratch (lr 0.1), 77.0 MoCo IN-1M, 77.3 MoCo IG-1B (lr 0.03)",
            config=ClassificationConfig(
                recipe="imagenet-r50",
                data=ClassifiedData("imagenet:imagenet"),
                training=ClassificationSchedule(epochs=100, falls=(0.3, 0.6, 0.9)),
            ),
            source="He et al. 2020, appendix A.7: learning rates, BN. Length as in A.6; batch, crops, weight decay and "
            "the falls at 30, 60 and 90 epochs are those of PyTorch's supervised example",
        ),
        TransferRecipe(
            about="iNaturalist 2018, ResNet-50, all layers fine-tuned",
            cost="100 epochs of 437,513 images; not timed here",
            reaches="61.8 from scratch (lr 0.1), 66.1 supervised IN-1M, 65.6 MoCo IN-1M, 65.8 MoCo IG-1B (lr 0.025)",
            config=ClassificationConfig(
                recipe="inat18-r50",
                data=ClassifiedData("folder:inat2018"),
                training=ClassificationSchedule(epochs=100, lr=0.025, falls=(0.7, 0.9)),
            ),
            source="He et al. 2020, appendix A.6: length, learning rates and their falls, BN. Batch and crops are "
            "as for ImageNet",
        ),
        TransferRecipe(
            about="your labelled images: size, batch, length and learning rate follow from them and from the start",
            cost="from seconds to an hour: the table at the start gives the steps",
            reaches="depends on the images",
            config=ClassificationConfig(
                recipe="own",
                views=TrainingViews(image_size=0, min_area=0.2),
                training=ClassificationSchedule(schedule="cosine", batch_size=64),
            ),
            source="this project",
        ),
    ]
}
