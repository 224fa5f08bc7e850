"""Pictures of a run: its views and its curves."""

import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from moco.data import ImageSet, InMemory, Loader
from moco.run import Run
from moco.views import Views

PAIRS = 24


def draw_views(images: ImageSet, views: Views, path: Path) -> None:
    """The first pairs of views of epoch 0 as the encoder sees them, one above the other, as PNG."""
    first = images.subset(torch.arange(min(PAIRS, len(images))))
    batch = next(iter(Loader(first, views, torch.device("cpu")).batches([(0, torch.arange(len(first)))])))
    columns = min(12, len(first))
    rows = math.ceil(len(first) / columns)
    originals = [first.images] if isinstance(first, InMemory) else []
    stacks = [_shown(view, views) for view in batch.views]
    names = ["view 1", "view 2"]
    if originals and originals[0].shape[2:] == stacks[0].shape[1:3]:
        stacks, names = [originals[0].permute(0, 2, 3, 1).numpy(), *stacks], ["image", *names]
    figure, axes = plt.subplots(
        rows * len(stacks), columns, figsize=(columns * 0.9, rows * len(stacks) * 0.9), squeeze=False
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for i in range(len(first)):
        for j, (stack, name) in enumerate(zip(stacks, names, strict=True)):
            axis = axes[i // columns * len(stacks) + j, i % columns]
            axis.imshow(stack[i])
            if i % columns == 0:
                axis.set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _shown(view: Tensor, views: Views) -> np.ndarray:
    """Normalised (n, 3, h, w) to values in 0..1 that can be shown, (n, h, w, 3)."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in views.pretext.normalisation)
    return (view * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def draw_curves(run: Run) -> Path:
    """The run's loss, look-up accuracy and kNN accuracy over the epochs, as curves.png in its folder."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    judged = [line for line in lines if "knn" in line]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    chance = math.log(run.config().contrast.queue_size + 1)
    panels = [
        (axes[0], trained, "loss", "InfoNCE loss (nats)", 1),
        (axes[1], trained, "accuracy", "look-up accuracy (%)", 100),
        (axes[2], judged, "knn", "kNN accuracy (%)", 100),
    ]
    for axis, rows, key, title, scale in panels:
        axis.plot(
            [row["epoch"] for row in rows], [scale * row[key] for row in rows], marker="o" if key == "knn" else ""
        )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(chance, color="grey", linestyle="--", linewidth=1)
    axes[0].annotate("guessing, log(K+1)", (0, chance), fontsize=8, color="grey", va="bottom")
    figure.suptitle(f"{run.config().recipe}  ({run.path.name})", x=0.01, ha="left", fontsize=10)
    figure.tight_layout()
    path = run.path / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
