"""A recipe for a data set: each choice with its reason, and the published setting that it scales from."""

import math
import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moco.runs.config import Compute, Config, Contrast, Data, Encoder, Log, Training, Views
from moco.runs.options import flag, with_options
from moco.views.recipes import get_pretext

_SIZES = (224, 192, 160, 128, 96, 64, 48, 32)
_CPU_SIZE = 64
"""The largest views that a CPU is fast enough for."""
_SMALL_FIRST = 32
"""Views of up to so many pixels were trained on smaller ones first, without loss."""
_CPU_IMAGES = 400_000
"""Images seen in a run on a CPU: about ten minutes of the small encoder on two cores."""
_FEWER = "given weights need fewer: a quarter of those from random weights"
_FEW = 1000
_GIVEN_RATE, _GIVEN_SHORTER = 0.3, 4
"""Continued from given weights: the learning rate's share, and how many times fewer epochs. That far fewer steps are
enough is the finding of Reed et al. 2022 (Self-supervised pretraining improves self-supervised pretraining)."""
_MUCH_LARGER = 2
"""How many times larger than the views need images are before it is worth to resize them once."""
_MOST_IMAGES = 1_250_000 * 1024
"""Images seen in the longest run of the paper, on Instagram-1B."""


@dataclass(frozen=True)
class Facts:
    """What is known of the data and the machine."""

    source: str
    images: int
    side: int
    """The median of the images' shorter sides, in pixels."""
    labelled: bool
    gpu: bool
    fits: int | None = None
    """The largest batch of which a step fits into memory, where that was measured."""
    given: Encoder | None = None
    """The encoder of the weights to start from, which its `init` names; None: random weights."""
    fixed_size: int | None = None
    """The only height and width of an image that this encoder takes, as a ViT's positions are of that size."""
    decoded: bool = False
    """Whether images are decoded in every epoch: they are not of one size, or too many to be kept in memory."""


class Choice(NamedTuple):
    option: str
    value: Any
    reason: str
    published: str
    """The setting that it scales from."""

    @property
    def flag(self) -> str:
        """The option as the command line spells it."""
        return flag(self.option)


def suggest(facts: Facts, compute: Compute, epochs: int | None = None) -> tuple[Config, list[Choice]]:
    """A configuration for the facts, and the reason of each choice.

    Args:
        facts: at least 2 images.
        compute: goes into the configuration as it is.
        epochs: how many there is time for, where that is known.
    """
    size = _size(facts)
    small = size.value <= 64
    batch = _batch(facts)
    group = max(1, min(32, batch.value // 4))  # of one group there is nothing to shuffle
    length = _epochs(facts, epochs)
    steps = length.value * facts.images / batch.value
    choices = [
        size,
        _encoder(facts, small),
        Choice("views", "cifar" if small else "v2", _VIEWS[small], "Chen et al. 2020 (v2)"),
        batch,
        _rate(facts, small, batch.value),
        length,
        _dictionary(facts, batch.value),
        _momentum(steps),
        Choice(
            "temperature", 0.1 if small else 0.2, "as published for images of this size", _LIGHTLY if small else _V2
        ),
        Choice("bn_group", group, "shuffling BN over groups, on one device too", "He et al. 2020: 32 a GPU"),
    ]
    if _by_muon(facts):
        choices.append(
            Choice("optimizer", "muon", "five points or more in as many steps (bench/notes.md)", "SGD (He et al. 2020)")
        )
    if not facts.gpu and facts.given is None and size.value <= _SMALL_FIRST:
        choices += _small_views_first(size.value)
    if facts.given is not None:
        choices.append(_warmup(length.value))
    chosen = {choice.option: choice.value for choice in choices}
    config = Config(
        data=Data(facts.source),
        views=Views(
            chosen["views"], chosen["image_size"], chosen.get("start_scale", 1.0), chosen.get("start_share", 0.75)
        ),
        encoder=facts.given or Encoder(chosen["encoder"], small_stem=small and facts.gpu),
        contrast=Contrast(
            queue_size=chosen["queue_size"],
            key_momentum=chosen["key_momentum"],
            temperature=chosen["temperature"],
            head="mlp",
            bn_group=group if group > 1 else None,
        ),
        training=Training(
            epochs=chosen["epochs"],
            batch_size=batch.value,
            lr=chosen["lr"],
            schedule="cosine",
            warmup=chosen.get("warmup", min(1.0, chosen["epochs"] / 10)),
            weight_decay=5e-4 if small else 1e-4,
            optimizer=chosen.get("optimizer", "sgd"),
        ),
        compute=compute,
        log=Log(knn_every=max(1, chosen["epochs"] // 20), knn_temperature=0.1 if small else 0.07),
    )
    return config, choices


def from_given(
    config: Config, given: Encoder, named: Collection[str] = (), fixed_size: int | None = None
) -> tuple[Config, list[Choice]]:
    """A recipe for random weights, changed to start from given ones, and the reason of each change.

    Args:
        config: the recipe, with what the command line names.
        given: the encoder of the weights, which its `init` names.
        named: options that the command line names, which stay.
        fixed_size: as of `Facts`.
    """
    training, options = config.training, config.encoder
    theirs = f"that of {given.init}"
    freeze = given.freeze_patches or (options.freeze_patches and given.encoder == options.encoder)
    shorter = training.iterations is None and "epochs" not in named
    epochs = max(1, training.epochs // _GIVEN_SHORTER) if shorter else training.epochs
    share = epochs / training.epochs
    milestones = tuple(share * milestone for milestone in training.milestones)
    warmup = _warmup(epochs)
    choices = [
        ("encoder", given.encoder, theirs),
        ("small_stem", given.small_stem, theirs),
        ("freeze_patches", freeze, theirs),
        ("lr", round(_GIVEN_RATE * training.lr, 6), f"{_GIVEN_RATE:.0%} of it: the given weights are to be kept"),
        (
            "optimizer",
            "sgd" if training.optimizer == "muon" else training.optimizer,
            "with it the rate of given weights was measured",
        ),
        ("epochs", epochs, _FEWER),
        ("milestones", milestones, "at the same shares of the length"),
    ]
    if training.iterations is None:  # else it is in steps, and nothing is known of how many the head needs
        choices.append(("warmup", max(share * training.warmup, warmup.value), warmup.reason))
    if fixed_size is not None:
        only = f"{given.encoder} takes images of {fixed_size} pixels only"
        choices += [("image_size", fixed_size, only), ("start_scale", 1.0, only)]
    before = {**vars(options), **vars(training), **vars(config.views)}
    changed = [
        Choice(name, value, reason, f"{before[name]} ({config.recipe})")
        for name, value, reason in choices
        if name not in named and value != before[name]
    ]
    return with_options(config, **{choice.option: choice.value for choice in changed}), changed


_LIGHTLY = "lightly's CIFAR-10 benchmark"
_V2 = "MoCo v2 on ImageNet"
_VIEWS = {True: "v2 without blur, which destroys a small image", False: "crop, colour, grey, blur, flip"}


def _size(facts: Facts) -> Choice:
    if facts.fixed_size is not None:
        return Choice("image_size", facts.fixed_size, "the only size that the given encoder takes", "the given weights")
    fitting = next((size for size in _SIZES if size <= facts.side), _SIZES[-1])
    if facts.gpu or fitting <= _CPU_SIZE:
        return Choice(
            "image_size", fitting, f"half of the images have {facts.side} pixels or more across", "224 of 256 pixels"
        )
    reason = f"a CPU is too slow for more; on a GPU it would be {fitting}"
    return Choice("image_size", _CPU_SIZE, reason, "the recipe cifar10-cpu: 32")


def _encoder(facts: Facts, small: bool) -> Choice:
    if facts.given is not None:
        stem = ", with the small stem" if facts.given.small_stem else ""
        return Choice("encoder", facts.given.encoder, f"that of {facts.given.init}{stem}", "the given weights")
    if not facts.gpu:
        return Choice("encoder", "tiny", "what a CPU can train in minutes", "the recipe cifar10-cpu")
    if small:
        return Choice("encoder", "resnet18", "a 3x3 stem without pooling keeps small images' detail", _LIGHTLY)
    return Choice("encoder", "resnet50", "the encoder with most published results", "He et al. 2020, section 4")


def _batch(facts: Facts) -> Choice:
    wanted = 64 if facts.images < 20_000 else 128 if facts.images < 100_000 else 256
    batch = min(wanted, 2 ** int(math.log2(facts.images)))
    reason = "few images: small batches give more steps"
    if facts.fits is not None and facts.fits < batch:
        batch, reason = facts.fits, "what fits into memory, as measured"
    return Choice("batch_size", batch, reason, f"256 ({_V2}), 128 ({_LIGHTLY})")


def _by_muon(facts: Facts) -> bool:
    """Whether Muon is suggested: for the encoder that it was tried with."""
    return not facts.gpu and facts.given is None


def _rate(facts: Facts, small: bool, batch: int) -> Choice:
    if _by_muon(facts):
        return Choice("lr", 0.06, "for Muon, whose steps do not grow with the batch", "the recipe cifar10-cpu: 0.06")
    published, of, source = (0.06, 128, _LIGHTLY) if small else (0.03, 256, "He et al. 2020, section 4")
    share, reason = 1.0, "in proportion to the batch"
    if facts.given is not None:
        share, reason = _GIVEN_RATE, f"{_GIVEN_RATE:.0%} of that from random weights: the given ones are to be kept"
    return Choice("lr", round(share * published * batch / of, 6), reason, f"{published} for {of} ({source})")


def _epochs(facts: Facts, epochs: int | None) -> Choice:
    if epochs is not None:
        return Choice("epochs", epochs, "as many as there is time for", "200 (He et al. 2020)")
    if facts.given is not None:
        scratch = _epochs(replace(facts, given=None), None)
        value = max(1, scratch.value // _GIVEN_SHORTER)
        return Choice("epochs", value, _FEWER, "continued in a fraction of the steps (Reed et al. 2022)")
    if not facts.gpu:
        value = min(200, max(5, _CPU_IMAGES // facts.images))
        return Choice("epochs", value, f"{value * facts.images:,} images in all", "200 (He et al. 2020)")
    if facts.images > _MOST_IMAGES // 200:
        value = max(1, _MOST_IMAGES // facts.images)
        return Choice(
            "epochs", value, f"{value * facts.images:,} images in all", "1.25 M steps of 1,024 (He et al. 2020)"
        )
    value = 200 if facts.images >= 50_000 else min(1000, 200 * 50_000 // facts.images)
    return Choice("epochs", value, "smaller data sets need more epochs", "200 (He et al. 2020), 200 to 800 (lightly)")


def _warmup(epochs: int) -> Choice:
    reason = "the encoder waits until the new head has learned"
    return Choice("warmup", min(1.0, epochs / 2), reason, "none (He et al. 2020)")


def _small_views_first(size: int) -> list[Choice]:
    """Of 16 pixels, the smallest that were tried."""
    scale = round(min(1.0, 16 / size), 2)
    reason = "small views first take a third of the time less, and cost no accuracy (bench/notes.md)"
    share = Choice("start_share", 0.6, "then views of the whole size", "the recipe cifar10-cpu: 0.6")
    return [Choice("start_scale", scale, reason, "the recipe cifar10-cpu: 0.5"), share]


def _dictionary(facts: Facts, batch: int) -> Choice:
    wanted = 2 ** round(math.log2(max(facts.images * 0.07, 1)))
    size = max(1, min(max(wanted, batch), 65_536, facts.images // 4))
    reason = f"{size / facts.images:.0%} of the images, so that few negatives come from the query's own image"
    return Choice("queue_size", size, reason, f"65,536 of 1.28 M ({_V2}), 4,096 of 50,000 ({_LIGHTLY})")


def _momentum(steps: float) -> Choice:
    value = next((m for m in (0.999, 0.99, 0.97) if steps * (1 - m) >= 10), 0.9)
    follows = 1 / (1 - value)
    reason = f"the key encoder averages over {follows:,.0f} of {steps:,.0f} steps"
    return Choice("key_momentum", value, reason, f"0.999 of 1,000,000 steps ({_V2}), 0.99 of 78,000 ({_LIGHTLY})")


def packed_side(views: Views) -> int:
    """The shorter side in pixels of images whose smallest crops are as large as the views: resized to it once, they
    lose nothing that a view keeps but what being resized twice costs."""
    smallest = min(pretext.area[0] for pretext in get_pretext(views.views))
    return math.ceil(views.image_size / math.sqrt(smallest))


def warnings(facts: Facts, views: Views, broken: int, examined: int) -> list[str]:
    """Warnings before a run is started; `broken` of the `examined` images cannot be read."""
    found = []
    side = packed_side(views)
    if facts.decoded and facts.side >= _MUCH_LARGER * side:
        found.append(
            f"every epoch decodes images of {facts.side:,} pixels for views of {views.image_size}: resize them once, "
            f"by moco pack {shlex.quote(facts.source)} packed --size {side}, and train on shards:packed"
        )
    if facts.images < _FEW and facts.given is None:
        found.append(
            f"{facts.images:,} images are few to learn features from: given weights will do better, continued (moco "
            "suggest --init torchvision:resnet18) or, with labels, fine-tuned (moco finetune torchvision:resnet18)"
        )
    if not facts.labelled:
        found.append(
            "there are no labels and test images, so no kNN accuracy is measured: moco doctor works without them"
        )
    if broken:
        found.append(
            f"{broken:,} of the {examined:,} images examined cannot be read: moco data {facts.source} lists them"
            + (
                f"; --max-bad {min(1, math.ceil(120 * broken / examined) / 100):g} trains without"
                if broken > examined / 100
                else ""
            )
        )
    return found
