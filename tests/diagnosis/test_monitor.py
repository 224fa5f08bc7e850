"""What the monitor measures, each figure against its definition; and it changes nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco.contrast.batchnorm import permutation
from moco.data import Encoded, InMemory, Source
from moco.data.formats.pack import pack
from moco.data.sources.shards import open_shards
from moco.diagnosis.monitor import BINS, Monitor, alignment, effective_rank, feature_std, histogram, uniformity
from moco.runs.config import Compute, Config, Contrast, Encoder, Log, Training, Views
from moco.runs.folder import Run
from moco.training import Pretraining
from moco.training.build import device_of

CONFIG = Config(
    views=Views("cifar", 16),
    encoder=Encoder("tinyw0.25"),
    contrast=Contrast(16, 96, 0.9, 0.1, bn_group=8),
    training=Training(epochs=20, batch_size=16, lr=0.03),
    compute=Compute(device="cpu", precision="fp32"),
    log=Log(),
)


def started(tmp_path, config: Config = CONFIG, images: int = 64, steps: int = 0) -> tuple[Pretraining, Monitor]:
    pixels = torch.randint(0, 256, (images, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    run = Pretraining(
        config,
        Source(InMemory(pixels), None, None),
        Run(tmp_path),
        device_of(config.compute),
    )
    for batch in run.loader.training(config.training.batch_size, 0, 0, steps):
        run.update(*run.inputs(batch))
    return run, Monitor(config, run.mechanism, run.loader, images, run.device)


@pytest.mark.parametrize("step", [0, 1])
def test_the_probe_of_streams_is_the_step_s_batch(tmp_path, step):
    """Shards behind a URL are read through: their batches are those of the streams, no images by their place."""
    pixels = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pack(Source(InMemory(pixels), None, None), tmp_path / "shards", images_per_shard=16, workers=0)
    images = Encoded(open_shards(str(tmp_path / "shards"))[0])
    images.reader.remote = True
    config = replace(CONFIG, data=replace(CONFIG.data, shard_streams=4), compute=replace(CONFIG.compute, workers=0))
    run = Pretraining(config, Source(images, None, None), Run(tmp_path), device_of(config.compute))
    expected = list(run.loader.training(16, 0, 0, 2, 4))[step]
    probe = Monitor(config, run.mechanism, run.loader, 64, run.device).probe(step)
    assert torch.equal(probe.images, expected.images)
    assert torch.equal(probe.views[0], expected.views[0])


def unit(n: int, dim: int = 8) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim), dim=1)


def test_alignment_and_uniformity_are_wang_and_isola_s():
    x, y = unit(20), unit(20)
    assert alignment(x, y) == pytest.approx(float(np.mean([float(((a - b) ** 2).sum()) for a, b in zip(x, y)])))  # noqa: B905
    pairs = [math.exp(-2 * float(((x[i] - x[j]) ** 2).sum())) for i in range(20) for j in range(i)]
    assert uniformity(x) == pytest.approx(math.log(np.mean(pairs)), rel=1e-4)
    assert uniformity(x[:1].repeat(5, 1)) == pytest.approx(0, abs=1e-5)


def test_effective_rank_is_the_number_of_equal_directions():
    basis = torch.linalg.qr(torch.randn(32, 32)).Q
    assert effective_rank(basis[:, :5] @ basis[:5]) == pytest.approx(5, rel=1e-3)
    assert effective_rank(torch.ones(32, 8)) == pytest.approx(1, rel=1e-3)
    values = torch.linalg.svdvals(features := torch.randn(40, 12))
    shares = values / values.sum()
    assert effective_rank(features) == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-3)


def test_feature_std_is_1_on_the_sphere_and_0_at_a_point():
    assert feature_std(unit(4096, 32)) == pytest.approx(1, abs=0.03)
    assert feature_std(unit(1).repeat(10, 1)) == pytest.approx(0, abs=1e-6)


def test_a_histogram_counts_all():
    counts = histogram(torch.tensor([-1.0, -0.999, 0.0, 1.0, 1.0, math.nan]))
    assert len(counts) == BINS
    assert (counts[0], counts[BINS // 2], counts[-1], sum(counts)) == (2, 1, 2, 5)


def test_figures_of_features_are_of_the_probe(tmp_path):
    """The rank is of both views' features, the others of the first view's queries and of the second's."""
    run, monitor = started(tmp_path, steps=2)
    measured = monitor.measure(2)
    with torch.no_grad():
        features = torch.cat([run.mechanism.query.backbone(view) for view in monitor.probe().views])
        q, other = (F.normalize(run.mechanism.query(view), dim=1) for view in monitor.probe().views)
    assert measured["rank"] == pytest.approx(effective_rank(features), rel=1e-3)
    assert measured["rank_of"] == min(features.shape)
    assert measured["alignment"] == pytest.approx(alignment(q, other), rel=1e-3)
    assert measured["uniformity"] == pytest.approx(uniformity(q), rel=1e-3)
    assert measured["feature_std"] == pytest.approx(feature_std(q), rel=1e-3)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("steps", [0, 2, 6, 9])
def test_the_queue_s_figures(tmp_path, steps, symmetric):
    _, monitor = started(tmp_path, replace(CONFIG, contrast=replace(CONFIG.contrast, symmetric=symmetric)), steps=steps)
    measured = monitor.measure(steps)
    per_step = 16 * (1 + symmetric)
    real = min(per_step * steps, 96)
    assert measured["queue_real"] == pytest.approx(real / 96)
    ages = [i // per_step for i in range(real)]
    assert measured["key_age"] == pytest.approx(np.mean(ages) if ages else 0)
    assert measured["queue_share"] == pytest.approx(min(1, real / (1 + symmetric) / 64))
    assert sum(measured["positive_histogram"]) == 16
    assert sum(measured["negative_histogram"]) == 16 * (real or 96)  # of images' keys, once there are any


@pytest.mark.parametrize(("symmetric", "recent", "steps"), [(False, 2**20, 6), (True, 2**20, 3), (False, 40, 2)])
def test_same_image_counts_the_keys_of_a_query_s_own_image(tmp_path, monkeypatch, symmetric, recent, steps):
    """A queue of 96 keys holds 6 steps of 16, or 3 symmetric ones; only so many `recent` images are compared."""
    monkeypatch.setattr("moco.diagnosis.monitor._RECENT", recent)
    config = replace(CONFIG, contrast=replace(CONFIG.contrast, symmetric=symmetric))
    run, monitor = started(tmp_path, config, steps=9)
    batches = list(run.loader.training(16, 0, 0, 10))
    queued = torch.cat([batch.images for batch in batches[9 - steps : 9]])
    expected = (queued[None] == batches[9].images[:, None]).sum(dim=1).float().mean() * (1 + symmetric)
    assert monitor.measure(9)["same_image"] == pytest.approx(float(expected))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_key_drift_is_1_while_the_key_encoder_stands_though_its_keys_are_shuffled(tmp_path, symmetric, parts):
    training = replace(CONFIG.training, accumulation_steps=parts)
    contrast = replace(CONFIG.contrast, symmetric=symmetric, key_momentum=1.0, bn_group=8 // parts, queue_size=100)
    run, monitor = started(tmp_path, replace(CONFIG, contrast=contrast, training=training), steps=8)  # a full queue
    assert monitor.measure(8)["key_drift"] == pytest.approx(1, abs=1e-6)
    enqueued = run.mechanism.queue.enqueued
    per_step = 16 * (1 + symmetric)
    keys = [monitor._keys(monitor.probe().views[1], enqueued=int(enqueued) - per_step * i) for i in (1, 2)]
    assert (keys[0] - keys[1]).norm() > 0.1  # another step's permutation makes other BN groups, and other keys


def test_key_drift_is_below_1_when_the_key_encoder_moves(tmp_path):
    _, monitor = started(tmp_path, replace(CONFIG, contrast=replace(CONFIG.contrast, key_momentum=0.0)), steps=5)
    assert monitor.measure(5)["key_drift"] < 0.999


def test_parts_are_bn_groups(tmp_path):
    training, contrast = replace(CONFIG.training, accumulation_steps=2), replace(CONFIG.contrast, bn_group=None)
    _, parts = started(tmp_path, replace(CONFIG, contrast=contrast, training=training), steps=3)
    _, groups = started(tmp_path, replace(CONFIG, contrast=replace(contrast, bn_group=8)), steps=3)
    ours, theirs = parts.measure(3), groups.measure(3)
    assert ours["bn_groups"] == theirs["bn_groups"] == 2
    for name in ("rank", "feature_std", "uniformity", "bn_leak"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("group", "shuffle", "groups"), [(8, True, 2), (8, False, 2), (16, True, 1), (None, True, 1)])
@pytest.mark.parametrize("mechanism", ["moco", "end-to-end"])
def test_the_leak_is_what_shared_statistics_add(tmp_path, monkeypatch, mechanism, group, shuffle, groups):
    monkeypatch.setattr("moco.diagnosis.monitor._SHOWN", 15)  # of a queue of more, all in blocks of so many
    contrast = replace(CONFIG.contrast, bn_group=group, shuffle=shuffle, mechanism=mechanism)
    run, monitor = started(tmp_path, replace(CONFIG, contrast=contrast), steps=12)
    measured = monitor.measure(12)
    (view1, view2), (_, other) = (batch.views for batch in run.loader.training(16, 0, 0, 2))
    moco = run.mechanism

    def keys(views: torch.Tensor) -> torch.Tensor:
        return F.normalize(moco.key(views), dim=1)

    with torch.no_grad():
        q, shared = F.normalize(moco.query(view1), dim=1), keys(view2)
        if groups > 1:
            order = permutation(16, 2 * (moco.queue.enqueued if mechanism == "moco" else moco.steps))
            apart = keys(view2[order])[order.argsort()]
        else:  # every fourth image in turn, among those of the second step
            apart = torch.empty_like(shared)
            for first in range(4):
                mixed = other.clone()
                mixed[first::4] = view2[first::4]
                apart[first::4] = keys(mixed)[first::4]
        found, histograms = [], []
        for k in (shared, apart):
            own, negatives = (q * k).sum(dim=1), q @ (moco.queue.keys if mechanism == "moco" else k).T
            if mechanism == "end-to-end":
                negatives.fill_diagonal_(-1)
            found.append((own > negatives.amax(dim=1)).float().mean().item())
            others = negatives[~torch.eye(16, dtype=torch.bool)] if mechanism == "end-to-end" else negatives[:, :15]
            histograms.append((histogram(own), histogram(others)))
    assert (shared - apart).norm() > 0.1
    assert measured["bn_leak"] == pytest.approx(found[0] - found[1], abs=1e-6)
    assert measured["bn_groups"] == groups
    assert sum(measured["negative_histogram"]) == 16 * 15
    as_trained = histograms[shuffle and groups > 1]
    assert (measured["positive_histogram"], measured["negative_histogram"]) == as_trained


def test_the_probe_and_the_keys_drawn_again_are_training_s_in_bf16_too(tmp_path):
    config = replace(
        CONFIG, compute=replace(CONFIG.compute, precision="bf16"), contrast=replace(CONFIG.contrast, key_momentum=1.0)
    )
    run, monitor = started(tmp_path, config, steps=5)
    assert monitor.measure(5)["key_drift"] == pytest.approx(1, abs=1e-6)
    for drawn, trained in zip(monitor.probe().views, next(run.loader.training(16, 0, 0, 1)).views, strict=True):
        assert torch.equal(drawn, trained)


@pytest.mark.parametrize("mechanism", ["moco", "end-to-end", "memory-bank", "moco-v3"])
def test_it_changes_nothing(tmp_path, mechanism):
    config = replace(CONFIG, contrast=replace(CONFIG.contrast, mechanism=mechanism, hidden=32))
    run, monitor = started(tmp_path, config, steps=3)
    before = {name: value.clone() for name, value in run.mechanism.state_dict().items()}
    generator = torch.get_rng_state()
    measured = monitor.measure(3)
    everywhere = {"alignment", "uniformity", "rank", "feature_std", "positive_histogram", "negative_histogram"}
    assert everywhere <= set(measured)
    assert ("bn_leak" in measured) == (mechanism in ("moco", "end-to-end"))
    assert sum(measured["positive_histogram"]) == 16
    assert all(math.isfinite(value) for value in measured.values() if isinstance(value, float))
    assert torch.equal(torch.get_rng_state(), generator)
    if mechanism == "memory-bank":  # a query's own image is no negative
        drawn = run.mechanism.draw() != monitor.probe().images[:, None]
        assert sum(measured["negative_histogram"]) == drawn.sum() < drawn.numel()
    for name, value in run.mechanism.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_queries_of_moco_v3_are_the_predictor_s(tmp_path):
    config = replace(CONFIG, contrast=replace(CONFIG.contrast, mechanism="moco-v3", hidden=32))
    run, monitor = started(tmp_path, config, steps=2)
    measured, (view1, view2) = monitor.measure(2), monitor.probe().views
    with torch.no_grad():
        q = F.normalize(run.mechanism.predictor(run.mechanism.query(view1)), dim=1)
        k = F.normalize(run.mechanism.key(view2), dim=1)
    assert measured["positive_histogram"] == histogram((q * k).sum(dim=1))
