"""Small images: the embedded data set, CIFAR-10."""

from dataclasses import replace

from moco.runs.config import Config, Contrast, Data, Encoder, Log, Training, Views
from moco.runs.recipes.recipe import Recipe

# A short run on a CPU: a key encoder that follows faster, a queue smaller than the data set.
_SHORT = Contrast(queue_size=4096, key_momentum=0.99, temperature=0.1, head="mlp", bn_group=32)

# Orthogonal updates in place of the paper's SGD: as good in 12 epochs of CIFAR-10 as SGD in 30 (bench/notes.md).
_FAST = Training(lr=0.06, schedule="cosine", warmup=1, weight_decay=5e-4, optimizer="muon")

SMALL = [
    Recipe(
        about="The embedded data set, 24 pixels, a small encoder: what `moco demo` runs.",
        cost="1.5 minutes on 2 CPU cores without bf16",
        reaches="kNN 54, in 4 epochs 71 (random weights 24)",
        config=Config(
            recipe="shapes-cpu",
            data=Data("shapes"),
            # Views of 16 pixels in three of four steps: a fifth less time, and 2 to 3 points more (bench/notes.md).
            views=Views("shapes", 24, start_scale=0.67),
            encoder=Encoder("tiny"),
            # Many small steps are worth more than few large ones where images are few: batch 64 in 4 BN groups.
            contrast=replace(_SHORT, queue_size=512, bn_group=16),
            training=replace(_FAST, epochs=2, batch_size=64, warmup=0.5),
            log=Log(knn_every=2, log_every=50),
        ),
    ),
    Recipe(
        about="CIFAR-10 (or any small images) on a CPU, with a small encoder.",
        cost="4 minutes on 2 CPU cores with bf16 for 20,000 images, 7 without",
        reaches="kNN 51 on 2,000 images a class (random weights 32.8)",
        config=Config(
            recipe="cifar10-cpu",
            data=Data("cifar10:data"),
            # Views of 16 pixels in six of ten steps: the same accuracy in two thirds of the time (bench/notes.md).
            views=Views("cifar", 32, start_scale=0.5, start_share=0.6),
            encoder=Encoder("tiny"),
            contrast=_SHORT,
            training=replace(_FAST, epochs=12),
            log=Log(knn_every=3),
        ),
    ),
    Recipe(
        about="CIFAR-10 with ResNet-18 (small stem), the setting of lightly's published benchmark.",
        cost="128.8 minutes and 1.7 GB as published (RTX A6000); 7.6 ms a step on an H200, by that 10 minutes",
        reaches="kNN 83.8 as published; not yet run here",
        source="lightly's benchmark page, MoCo on CIFAR-10, 200 epochs, batch 128",
        config=Config(
            recipe="cifar10-r18",
            data=Data("cifar10:data"),
            views=Views("cifar", 32),
            encoder=Encoder("resnet18", small_stem=True),
            # BN over 16 images: the benchmark divides its batch of 128 into 8.
            contrast=replace(_SHORT, symmetric=True, bn_group=16),
            training=Training(epochs=200, batch_size=128, lr=0.06, schedule="cosine", weight_decay=5e-4),
            log=Log(knn_every=10, log_every=50),
        ),
    ),
    Recipe(
        about="CIFAR-10 to a linear accuracy of 90 % in the shortest time on one GPU: a first setting, untuned.",
        cost="not yet timed",
        reaches="not yet run; the goal is linear 90.0",
        config=Config(
            recipe="cifar10-speed",
            data=Data("cifar10:data"),
            views=Views("cifar", 32),
            encoder=Encoder("resnet18", small_stem=True),
            # One view queries: half the work of a symmetric step, and the epochs that buys. Large groups: few kernels.
            contrast=Contrast(queue_size=8192, key_momentum=0.99, temperature=0.1, head="mlp", bn_group=64),
            training=Training(epochs=400, batch_size=512, lr=0.24, schedule="cosine", warmup=5, weight_decay=5e-4),
            log=Log(knn_every=50, log_every=50),
        ),
    ),
]
