"""The experiments of the paper (and the small-scale results of others), each a grid of runs at three scales."""

from itertools import pairwise

from moco.reproduce.experiment import Cell, Changes, Claim, Experiment, Scale
from moco.runs.config import Config
from moco.runs.options import with_options
from moco.runs.published import ENCODERS, MECHANISMS, MOMENTA, SMALL_SCALE
from moco.runs.recipes.recipes import RECIPES


def base(scale: Scale, changes: Changes, evaluations: int = 1, **options: object) -> Config:
    """What all runs of a scale share: real images, one query per image, `evaluations` by kNN; then what is changed."""
    config = {
        # 10,000 images and small batches: many steps in the 40 minutes that a grid takes on 2 cores.
        # By SGD, as in the paper.
        "cpu": with_options(
            RECIPES["cifar10-cpu"].config,
            per_class=1000,
            epochs=8,
            batch_size=64,
            lr=0.03,
            start_scale=1.0,
            optimizer="sgd",
        ),
        "gpu": RECIPES["cifar10-r18"].config,
        "imagenet": RECIPES["imagenet-r50-v1"].config,
    }[scale]
    config = with_options(config, symmetric=False, **(options | changes))
    return with_options(config, **({"knn_every": max(1, config.training.epochs // evaluations)} | changes))


# Fig. 3


_SIZES: dict[Scale, list[int]] = {
    "cpu": [4, 16, 64, 256, 1024],
    "gpu": [256, 512, 1024, 4096, 16384],
    "imagenet": [256, 512, 1024, 4096, 16384, 65536],
}
_BATCHES: dict[Scale, tuple[int, int]] = {"cpu": (16, 256), "gpu": (16, 1024), "imagenet": (16, 1024)}
"""The least and the largest of end-to-end, whose dictionary is the mini-batch.

1024 was the largest that fitted, in the paper; of the 2,500 images of the CPU's scale it leaves 58 steps.
"""


def _mechanisms(scale: Scale, changes: Changes) -> list[Cell]:
    # Fewer images and more epochs on a CPU: a memory bank learns from its vectors, and has each once an epoch. At the
    # learning rate of the other experiments a bank, and end-to-end's large batches, collapse.
    options: Changes = {"per_class": 250, "epochs": 24, "lr": 0.01} if scale == "cpu" else {}
    shared, cells, (least, largest) = base(scale, changes, **options), [], _BATCHES[scale]
    for size in _SIZES[scale]:
        configs = {
            "MoCo": with_options(shared, queue_size=size),
            "memory bank": with_options(shared, mechanism="memory-bank", queue_size=size),
        }
        if least <= size <= largest:
            lr = shared.training.lr * size / shared.training.batch_size  # linear scaling
            bn_group = min(size, shared.contrast.bn_group or size)
            configs["end-to-end"] = with_options(
                shared, mechanism="end-to-end", batch_size=size, lr=lr, bn_group=bn_group
            )
        cells += [
            Cell(name, size, config, MECHANISMS.get(name) if size == _SIZES[scale][-1] else None)
            for name, config in configs.items()
        ]
    return sorted(cells, key=lambda cell: cell.series)


def _mechanism_claims(scale: Scale) -> list[Claim]:
    least, largest = _SIZES[scale][0], _SIZES[scale][-1]
    batch = _BATCHES[scale][1]
    ranges = {
        "MoCo": (least, largest),
        "end-to-end": (max(least, _BATCHES[scale][0]), batch),
        "memory bank": (least, largest),
    }
    gains = [
        Claim(f"{name} gains from a larger K ({high} over {low})", (name, high), (name, low))
        for name, (low, high) in ranges.items()
    ]
    top, bank = ("MoCo", largest), ("memory bank", largest)
    return [
        *gains,
        Claim("end-to-end is like MoCo at the same K (256)", ("end-to-end", 256), ("MoCo", 256), alike=True),
        Claim(f"MoCo's largest dictionary ({largest}) is above end-to-end's ({batch})", top, ("end-to-end", batch)),
        Claim(f"MoCo is above the memory bank at K {largest}", top, bank),
    ]


# The momentum table


_MOMENTA = (0.0, 0.9, 0.99, 0.999, 0.9999)


def _momentum(scale: Scale, changes: Changes) -> list[Cell]:
    shared = base(scale, changes, queue_size=4096)
    return [Cell("MoCo", m, with_options(shared, key_momentum=m), MOMENTA.get(m)) for m in _MOMENTA]


def _momentum_claims(scale: Scale) -> list[Claim]:
    pairs = [(0.999, 0.0), (0.99, 0.9), (0.999, 0.99)]
    return [
        *(Claim(f"m = {high:g} is above m = {low:g}", ("MoCo", high), ("MoCo", low)) for high, low in pairs),
        Claim("m = 0.9999 is like m = 0.999", ("MoCo", 0.9999), ("MoCo", 0.999), alike=True),
    ]


# Fig. A.1


def _shuffle_bn(scale: Scale, changes: Changes) -> list[Cell]:
    # On a CPU smaller groups: the fewer images share statistics, the more these give away.
    options = {"per_class": 500, "epochs": 40, "lr": 0.06, "bn_group": 8} if scale == "cpu" else {}
    shared = base(scale, changes, evaluations=10, **options)
    return [
        Cell("with shuffling BN", "", with_options(shared, shuffle=True)),
        Cell("without", "", with_options(shared, shuffle=False)),
    ]


def _shuffle_bn_claims(scale: Scale) -> list[Claim]:
    with_, without = ("with shuffling BN", ""), ("without", "")
    return [
        Claim("without shuffling the contrastive accuracy is higher: the model cheats", without, with_, "contrastive"),
        Claim("with shuffling the features are better (kNN)", with_, without, "knn"),
    ]


# Table 1


_ENCODERS: dict[Scale, list[str]] = {
    "cpu": ["resnet18", "resnet34", "resnet50"],
    "gpu": ["resnet18", "resnet34", "resnet50", "resnet50w2"],
    "imagenet": ["resnet50", "resnext50_32x8d", "resnet50w2", "resnet50w4"],
}


def _encoders(scale: Scale, changes: Changes) -> list[Cell]:
    # On a CPU the stem for large images, which makes 32 pixels 8: a 46th of the small stem's work.
    options = {"epochs": 6} if scale == "cpu" else {}
    shared = base(scale, changes, **options)
    return [Cell("MoCo", name, with_options(shared, encoder=name), ENCODERS.get(name)) for name in _ENCODERS[scale]]


def _encoder_claims(scale: Scale) -> list[Claim]:
    return [
        Claim(f"{larger} is above {smaller}", ("MoCo", larger), ("MoCo", smaller))
        for smaller, larger in pairwise(_ENCODERS[scale])
    ]


# The last table of others' results on small images


def _small_scale(scale: Scale, changes: Changes) -> list[Cell]:
    if scale == "imagenet":
        r50 = with_options(RECIPES["imagenet-r50-v2"].config, epochs=100)
        return [_row("ImageNet, 100 epochs", "batch 256", r50, changes)]
    r18 = RECIPES["cifar10-r18"].config
    large = with_options(r18, batch_size=512, queue_size=8192, bn_group=64)
    longer = with_options(large, epochs=800, knn_every=40)
    if scale == "cpu":  # the same rows, as far as a CPU goes: a small encoder, few images, few epochs
        tiny: Changes = {"encoder": "tiny", "small_stem": False, "per_class": 1000}
        short, long = ({**tiny, "epochs": epochs, "knn_every": epochs, **changes} for epochs in (10, 40))
        return [
            _row("CIFAR-10, 10 epochs", "batch 128", r18, short),
            _row("CIFAR-10, 10 epochs", "batch 512", large, short),
            _row("CIFAR-10, 40 epochs", "batch 512", large, long),
        ]
    solo = with_options(
        large,
        queue_size=32768,
        temperature=0.2,
        lr=0.3,
        weight_decay=1e-4,
        batch_size=256,
        epochs=1000,
        bn_group=32,
        knn_every=50,
    )
    # Photographs, with the plain stem; how large they are is not published, and so is this project's.
    photographs = with_options(r18, small_stem=False, views="v2", batch_size=256, bn_group=32)
    source = changes.get("source", "cifar10:data")
    cifar100 = source.replace("cifar10:", "cifar100:") if source.startswith("cifar10:") else "cifar100:data"
    elsewhere = {"cifar100": {"source": cifar100}, "imagenet100": {"source": "imagenet:imagenet100"}}
    return [
        _row("CIFAR-10, 200 epochs", "batch 128", r18, changes),
        _row("CIFAR-10, 200 epochs", "batch 512", large, changes),
        _row("CIFAR-10, 800 epochs", "batch 512", longer, changes),
        _row("CIFAR-10, 1000 epochs", "batch 256", solo, changes),
        _row("CIFAR-100, 1000 epochs", "batch 256", solo, changes | elsewhere["cifar100"]),
        _row(
            "ImageNet-100, 200 epochs",
            "batch 256",
            with_options(photographs, image_size=224),
            changes | elsewhere["imagenet100"],
        ),
        _row(
            "Imagenette, 800 epochs",
            "batch 256",
            with_options(photographs, image_size=128, epochs=800, knn_every=40),
            changes | {"source": "imagenette:data"},
        ),
    ]


def _row(series: str, x: str, config: Config, changes: Changes) -> Cell:
    return Cell(series, x, with_options(config, **changes), SMALL_SCALE.get((series, x)))


def _small_scale_claims(scale: Scale) -> list[Claim]:
    if scale == "imagenet":
        return []
    short, long = (f"CIFAR-10, {epochs} epochs" for epochs in ((10, 40) if scale == "cpu" else (200, 800)))
    return [
        Claim("a batch of 512 with K 8192 is above 128 with 4096", (short, "batch 512"), (short, "batch 128"), "knn"),
        Claim("four times the epochs are better", (long, "batch 512"), (short, "batch 512"), "knn"),
    ]


_ALL = [
    Experiment(
        "mechanisms",
        "Three mechanisms over K (Fig. 3)",
        "End-to-end, memory bank and MoCo differ in the dictionary alone. The paper finds that all gain from a larger "
        "K, that end-to-end is like MoCo but ends with the largest batch that fits, and that MoCo is above the bank.",
        "K, the size of the dictionary",
        _mechanisms,
        _mechanism_claims,
        seeds=2,
    ),
    Experiment(
        "momentum",
        "The momentum of the key encoder (section 4.1)",
        "A key encoder that follows too fast makes the dictionary inconsistent: in the paper m = 0 fails, and a slowly "
        "moving one is best.",
        "m, the momentum",
        _momentum,
        _momentum_claims,
        note="m is a number of steps, 1 / (1 - m): a run of few steps ends before a slow key encoder has moved.",
    ),
    Experiment(
        "shuffle-bn",
        "Shuffling BN (Fig. A.1)",
        "Without shuffling the model cheats: BN statistics reveal which sub-batch a key came from, so that the "
        "contrastive accuracy soars while the features, evaluated by kNN, get worse.",
        "epoch",
        _shuffle_bn,
        _shuffle_bn_claims,
        measures=("knn", "contrastive", "linear"),
    ),
    Experiment(
        "encoders",
        "Encoders (Table 1)",
        "MoCo gains from larger encoders.",
        "encoder",
        _encoders,
        _encoder_claims,
        seeds=2,
    ),
    Experiment(
        "small-scale",
        "Published results on small images",
        "The settings of lightly's benchmark page and of solo-learn: ResNet-18 on small images, ResNet-50 on ImageNet.",
        "setting",
        _small_scale,
        _small_scale_claims,
        measures=("knn", "linear"),
    ),
]

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
