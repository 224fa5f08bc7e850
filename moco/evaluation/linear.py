"""Linear classification on frozen features (section 4.1)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.collectives import average, local, world_size
from moco.data import ImageSet, Loader, Source, shuffled, training_plan
from moco.evaluation.features import evaluating, extract
from moco.runs.config import Linear
from moco.runs.options import check_ranges
from moco.runtime.device import Device
from moco.runtime.errors import UserError, require_all
from moco.views import CentreCrop, Pretext, Views


class Accuracy(NamedTuple):
    top1: float
    """In 0..1."""
    top5: float


def evaluate_linear(
    encoder: nn.Module,
    source: Source,
    centre: CentreCrop,
    device: Device,
    options: Linear,
    workers: int | None = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Accuracy:
    """Trains the classifier on the source's labelled training images, tests it on the centre crops of its test images.

    `progress` wraps the iteration over the epochs. Raises UserError for a set smaller than a batch.
    """
    check_ranges(options)
    _check(options)
    train = source.labelled_train
    if len(train) < options.batch_size:
        raise UserError(
            f"--batch-size {options.batch_size}: the data set has only {len(train)} training images: give no more"
        )
    test = extract(encoder, source.labelled_test, centre, device, workers=workers)
    width = test.values.shape[1]
    classifier = train_linear(encoder, width, train, source.num_classes, centre, device, options, workers, progress)
    with torch.no_grad():
        logits = torch.cat([classifier(part.to(device.device)).cpu() for part in test.values.split(4096)])
    return accuracy(logits, test.labels)


def train_linear(
    encoder: nn.Module,
    num_features: int,
    train: ImageSet,
    num_classes: int,
    centre: CentreCrop,
    device: Device,
    options: Linear,
    workers: int | None = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> nn.Linear:
    """The classifier of the protocol, trained on a labelled set of at least a batch of images; on the device."""
    check_ranges(options)
    _check(options)
    n = len(train)
    if options.cached:
        bank = extract(encoder, train, centre, device, workers=workers)
        n = len(bank.values)

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = shuffled(torch.arange(n), n, options.seed, epoch)
            for index in order[: n // options.batch_size * options.batch_size].split(options.batch_size):
                yield bank.values[local(index)].to(device.device), bank.labels[local(index)]
    else:
        views = Views((crops_only(centre.pretexts[0]),), centre.size, options.seed, device.channels_last)
        loader = Loader(train, views, device.device, workers)

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            steps = n // options.batch_size
            plan = training_plan(n, options.batch_size, options.seed, epoch * steps, (epoch + 1) * steps)
            for index, (view,) in loader.batches(plan):
                with torch.no_grad(), device.autocast():
                    features = encoder(view)
                assert train.labels is not None
                yield features.float(), train.labels[index]

    with evaluating(encoder):
        return _train(batches, num_features, num_classes, device, options, progress)


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """The share of images whose class, int64 (n,), has the greatest of the logits (n, classes), or one of five."""
    right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return Accuracy(right[:, 0].double().mean().item(), right.any(dim=1).double().mean().item())


def _check(options: Linear) -> None:
    rules = [
        (
            options.batch_size % world_size() == 0,
            f"--batch-size {options.batch_size} is not a multiple of the {world_size()} ranks",
        ),
    ]
    require_all(rules)


def crops_only(pretext: Pretext) -> Pretext:
    """The views that the classifier is trained on: random crops of 8 % to all of the image, flips, normalisation."""
    return replace(
        pretext, area=(0.08, 1.0), grey_first=False, jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0
    )


def _train(
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
    num_features: int,
    num_classes: int,
    device: Device,
    options: Linear,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> nn.Linear:
    torch.manual_seed(options.seed)
    classifier = nn.Linear(num_features, num_classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    classifier.to(device.device)
    parameters = list(classifier.parameters())
    optimizer = torch.optim.SGD(parameters, options.lr, momentum=0.9, weight_decay=options.weight_decay)
    falls = [round(options.epochs * share) for share in (0.6, 0.8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    for epoch in progress(range(options.epochs)):
        for features, labels in batches(epoch):
            loss = F.cross_entropy(classifier(features), labels.to(device.device))
            optimizer.zero_grad()
            loss.backward()
            average([p.grad for p in parameters if p.grad is not None])
            optimizer.step()
        schedule.step()
    return classifier
