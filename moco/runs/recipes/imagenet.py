"""ImageNet: MoCo v1, v2 and v3 as published."""

from dataclasses import replace

from moco.runs.config import Config, Contrast, Data, Encoder, Log, Training, Views
from moco.runs.recipes.recipe import Recipe

# MoCo v3: BN statistics over the whole batch, momentum rising from here to 1.
_V3 = Contrast(dim=256, key_momentum=0.99, temperature=1.0, symmetric=True, bn_group=None, mechanism="moco-v3")
_V3_TRAINING = Training(batch_size=4096, schedule="cosine", optimizer="lars")

IMAGENET = [
    Recipe(
        about="MoCo v1 on ImageNet: the paper's main setting.",
        cost="about 53 h on 8 V100 GPUs as published; not yet timed here",
        reaches="linear 60.6 as published; not yet run here",
        source="He et al. 2020, section 4",
        config=Config(
            recipe="imagenet-r50-v1",
            data=Data("folder:imagenet"),
            views=Views("v1", 224),
            log=Log(knn_every=10, log_every=50, knn_temperature=0.07),
        ),
    ),
    Recipe(
        about="MoCo v2 on ImageNet: MLP head, blur, cosine schedule.",
        cost="about 53 h on 8 V100 GPUs as published; not yet timed here",
        reaches="linear 67.5 as published; not yet run here",
        source="Chen et al. 2020 (arXiv 2003.04297) and the released code",
        config=Config(
            recipe="imagenet-r50-v2",
            data=Data("folder:imagenet"),
            views=Views("v2", 224),
            contrast=Contrast(head="mlp", temperature=0.2),
            training=Training(schedule="cosine"),
            log=Log(knn_every=10, log_every=50, knn_temperature=0.07),
        ),
    ),
    Recipe(
        about="MoCo v3 on ImageNet, ResNet-50: no queue, a predictor, LARS. 300 epochs at --lr 4.8 reach 72.8.",
        cost="16 V100 GPUs as published, its hours are not; not run here",
        reaches="linear 68.9 as published; not run here",
        source="Chen, Xie and He 2021 (arXiv 2104.02057) and the released code, 100 epochs",
        config=Config(
            recipe="imagenet-r50-v3",
            data=Data("folder:imagenet"),
            views=Views("v3", 224),
            contrast=_V3,
            # The released code starts the last BN of each residual block at 0 as well, which is not done here.
            # The learning rate is 0.6 for every 256 images of a batch.
            training=replace(_V3_TRAINING, epochs=100, lr=0.6 * 4096 / 256, weight_decay=1e-6, warmup=10),
            log=Log(knn_every=10, log_every=50, knn_temperature=0.07),
        ),
    ),
    Recipe(
        about="MoCo v3 on ImageNet, ViT-S/16 with its patch projection frozen: AdamW.",
        cost="32 V100 GPUs as published, its hours are not; not run here",
        reaches="linear 73.2 as published; not run here",
        source="Chen, Xie and He 2021 (arXiv 2104.02057) and the released code, 300 epochs",
        config=Config(
            recipe="imagenet-vits-v3",
            data=Data("folder:imagenet"),
            views=Views("v3-vit", 224),
            encoder=Encoder("vit_s_16", freeze_patches=True),
            contrast=replace(_V3, temperature=0.2),
            # The learning rate is 1.5e-4 for every 256 images of a batch.
            training=replace(
                _V3_TRAINING, epochs=300, lr=1.5e-4 * 4096 / 256, weight_decay=0.1, warmup=40, optimizer="adamw"
            ),
            log=Log(knn_every=10, log_every=50, knn_temperature=0.07),
        ),
    ),
]
