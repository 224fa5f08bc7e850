"""Images of the web, in shards: the paper's Instagram-1B run."""

from moco.runs.config import Config, Contrast, Data, Log, Training, Views
from moco.runs.recipes.recipe import Recipe

WEB = [
    Recipe(
        about="The paper's Instagram-1B run, on anyone's shards: steps instead of epochs.",
        cost="about 6 days on 64 GPUs as published; not yet timed here",
        reaches="VOC detection AP50 82.2 (R50-C4) as published; not yet run here",
        source="He et al. 2020, section 4",
        config=Config(
            recipe="web-r50",
            data=Data("shards:PATTERN"),
            views=Views("v1", 224),
            contrast=Contrast(bn_group=16),  # of a GPU, as published: 64 GPUs of 16 images
            training=Training(
                iterations=1_250_000,
                batch_size=1024,
                lr=0.12,
                schedule="exponential",
                gamma=0.9,
                decay_every=62_500,
            ),
            log=Log(knn_every=62_500, log_every=50, knn_temperature=0.07),
        ),
    ),
]
